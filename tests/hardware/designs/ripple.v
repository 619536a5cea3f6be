module full_adder(input a, input b, input cin, output s, output cout);
  assign s = a ^ b ^ cin; assign cout = (a & b) | (cin & (a ^ b));
endmodule
module swap(input [3:0] p, input [3:0] q, output [3:0] x, output [3:0] y);
  assign x = q + 4'd1; assign y = ~p;
endmodule
module ripple(input clk, input [7:0] a, input [7:0] b, output [8:0] sum, output reg [7:0] held, output [3:0] twisted);
  wire [8:0] c; assign c[0] = 0; assign sum[8] = c[8];
  genvar i; generate for (i = 0; i < 8; i = i + 1) begin: bits
    full_adder f(a[i], b[i], c[i], sum[i], c[i+1]);
  end endgenerate
  wire [3:0] x, y;
  swap twist(.p(x), .q(a[3:0]), .x(x), .y(y));   // a loop of instances, not of logic
  assign twisted = y;
  always @(posedge clk) held <= sum[7:0];
endmodule
