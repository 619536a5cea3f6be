module wide(input clk, input rst, input [99:0] a, input [129:0] b, input [5:0] k, input s,
    output reg [129:0] r, output [7:0] byte_at, output eq, output any, output all, output parity, output [99:0] sum, output lt);
  always @(posedge clk) if (rst) r <= 0; else r <= s ? {r[121:0], byte_at} ^ b : (r & ~{30'b0, a}) | b;
  assign byte_at = b[k*2 +: 8];
  assign eq = a == b[99:0]; assign any = |b; assign all = &a[98:1]; assign parity = ^r;
  assign sum = a + r[99:0]; assign lt = a < b;
endmodule
