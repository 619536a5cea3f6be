module inner(input [7:0] a, input [7:0] b, output [7:0] y);
  wire [7:0] both = a & b;
  assign y = both ^ (a + b);
endmodule
