module pe #(parameter W=8, A=32)(input clk, input rst, input clear, input en, input signed [W-1:0] a_in, input signed [W-1:0] b_in,
  output reg signed [W-1:0] a_out, output reg signed [W-1:0] b_out, output reg clear_out, output reg en_out, output reg signed [A-1:0] acc);
  always @(posedge clk)
    if (rst) begin a_out<=0; b_out<=0; acc<=0; clear_out<=0; en_out<=0; end
    else begin
      a_out<=a_in; b_out<=b_in; clear_out<=clear; en_out<=en;
      if (en) acc <= (clear ? $signed({A{1'b0}}) : acc) + a_in*b_in;
    end
endmodule
module array #(parameter N=8, W=8, A=32)(input clk, input rst, input [N-1:0] clear, input [N-1:0] en, input [N*W-1:0] a, input [N*W-1:0] b, output [N*N*A-1:0] c);
  wire [W-1:0] h [0:N*(N+1)-1]; wire [W-1:0] v [0:N*(N+1)-1];
  wire cl [0:N*(N+1)-1]; wire ee [0:N*(N+1)-1];
  genvar i,j;
  generate for(i=0;i<N;i=i+1) begin: row
    assign h[i*(N+1)] = a[i*W +: W]; assign v[i] = b[i*W +: W]; assign cl[i*(N+1)] = clear[i]; assign ee[i*(N+1)] = en[i];
    for(j=0;j<N;j=j+1) begin: col
      pe #(W,A) p(clk, rst, cl[i*(N+1)+j], ee[i*(N+1)+j], h[i*(N+1)+j], v[i*N+j], h[i*(N+1)+j+1], v[(i+1)*N+j], cl[i*(N+1)+j+1], ee[i*(N+1)+j+1], c[(i*N+j)*A +: A]);
    end end endgenerate
endmodule
