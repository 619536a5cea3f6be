module alu(input clk, input [4:0] op, input [15:0] a, input [11:0] b, input signed [15:0] sa, input signed [9:0] sb,
           output reg [31:0] y, output [7:0] flags);
  reg [31:0] r;
  wire signed [4:0] d = {1'b0, sb[3:0]} - 5'd6;
  wire [7:0] quotient = a[7:0] / b[4:0], rest = a[6:0] % b[4:0];
  wire signed [7:0] signed_quotient = $signed(sa[7:0]) / d, signed_rest = $signed(sa[7:0]) % d;
  always @* case (op)
    0: r = a + b;          1: r = a - b;            2: r = a * b;            3: r = sa * sb;
    4: r = sa + sb;        5: r = sa - sb;          6: r = b[4:0] ? quotient : 0; 7: r = b[4:0] ? rest : 0;
    8: r = d ? signed_quotient : 0; 9: r = d ? signed_rest : 0;
    10: r = a << b[4:0];   11: r = a >> b[4:0];     12: r = sa >>> b[4:0];   13: r = sa <<< b[3:0];
    14: r = {a, b} ^ {b, a}; 15: r = ~(a & b);      16: r = {32{sa[15]}} | sa; 17: r = -sa;
    18: r = a[b[3:0]];     19: r = a[b[2:0] +: 4];  20: r = {a[3:0], b[7:4], sa[11:2]};
    21: r = (a > b) + (sa > sb) + (sa >= sb) + (a <= b); 22: r = (sa < sb) ? sa : sb;
    23: r = sa ~^ sb;      24: r = &a ? 1 : |b ? 2 : ^a ? 3 : 4; 25: r = !a || (b && sa);
    26: r = $signed(a[7:0]) * $signed({1'b0, b[6:0]});
    default: r = y + 1;
  endcase
  always @(posedge clk) y <= r;
  assign flags = {a == b, a != b, sa == sb, ^sa, ~^sb, ~|a, ~&b, sa < sb};
endmodule
