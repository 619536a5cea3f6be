// A netlist made of the cells of small.lib: a scan chain with an enable, set and reset, and some logic.
module mapped(input clk, rst_n, set_n, en, se, si, input [1:0] d, output [3:0] q, output carry, y);
  wire n0, n1, n2, sum, qn, one, f, sn;
  INV_X1 i0(.A(d[0]), .ZN(n0));
  AOI21_X1 a0(.A(n0), .B1(d[1]), .B2(q[0]), .ZN(n1));
  HA_X1 h0(.A(q[1]), .B(n1), .CO(carry), .S(sum));
  TIE_X1 t0(.Z(one));
  NAND2_X1 g0(.A1(one), .A2(sum), .ZN(n2));
  MUX2_X1 m0(.A(n2), .B(qn), .S(en), .Z(f));
  DFFE_X1 r0(.D(f), .E(en), .CK(clk), .Q(q[0]), .QN());
  DFFRS_X1 r1(.D(n2), .CK(clk), .RN(rst_n), .SN(set_n), .Q(q[1]), .QN(qn));
  SDFF_X1 r2(.D(sum), .SE(se), .SI(si), .CK(clk), .Q(q[2]));
  DFFR_X1 r3(.D(q[2]), .CK(clk), .RN(rst_n), .Q(), .QN(sn));
  BUF_X1 b0(.A(sn), .Z(q[3]));
  NOR2_X1 g1(.A1(sn), .A2(qn), .ZN(y));
endmodule
