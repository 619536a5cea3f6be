module counter(input clk, input rst_n, input enable, input load, input [3:0] start, output reg [3:0] count, output wrap);
  always @(posedge clk or negedge rst_n)
    if (!rst_n) count <= 4'd0;
    else if (load) count <= start;
    else if (enable) count <= count + 4'd1;
  assign wrap = enable & (&count);
endmodule
