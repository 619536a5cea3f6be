module cell_(input a, input b, input s, input c, output so, output co);
  wire p; assign p = a & b; assign so = p ^ s ^ c; assign co = (p & s) | (p & c) | (s & c);
endmodule
module multiplier #(parameter N = 8)(input clk, input [N-1:0] a, input [N-1:0] b, output [2*N-1:0] p, output reg [2*N-1:0] held);
  wire s [0:N*(N+1)-1]; wire c [0:N*(N+1)-1];
  genvar i, j;
  generate
    for (j = 0; j < N; j = j + 1) begin: row
      for (i = 0; i < N; i = i + 1) begin: col
        cell_ m(a[i], b[j], j == 0 ? 1'b0 : (i == N-1 ? c[(j-1)*(N+1)+N] : s[(j-1)*(N+1)+i+1]), c[j*(N+1)+i],
                s[j*(N+1)+i], c[j*(N+1)+i+1]);
      end
      assign c[j*(N+1)] = 1'b0; assign p[j] = s[j*(N+1)];
    end
    for (i = 1; i < N; i = i + 1) begin: top assign p[N-1+i] = s[(N-1)*(N+1)+i]; end
  endgenerate
  assign p[2*N-1] = c[(N-1)*(N+1)+N];
  always @(posedge clk) held <= p;
endmodule
