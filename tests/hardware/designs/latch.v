module latch(input clk, input rst, input open_, input [3:0] d, output [3:0] q, output reg [3:0] held);
  reg [3:0] l;
  always @* if (open_) l = d;
  assign q = l ^ 4'd5;
  always @(posedge clk) if (rst) held <= 0; else held <= l;
endmodule
