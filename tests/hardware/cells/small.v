// The cells of small.lib by hand: every pin passes through a wire of its own (pin A through A_), where a fault can sit.
module INV_X1(input A, output ZN); wire A_ = A; wire ZN_ = ~A_; assign ZN = ZN_; endmodule
module BUF_X1(input A, output Z); wire A_ = A; wire Z_ = A_; assign Z = Z_; endmodule
module NAND2_X1(input A1, A2, output ZN); wire A1_ = A1, A2_ = A2; wire ZN_ = ~(A1_ & A2_); assign ZN = ZN_; endmodule
module NOR2_X1(input A1, A2, output ZN); wire A1_ = A1, A2_ = A2; wire ZN_ = ~(A1_ | A2_); assign ZN = ZN_; endmodule
module XOR2_X1(input A, B, output Z); wire A_ = A, B_ = B; wire Z_ = A_ ^ B_; assign Z = Z_; endmodule
module AOI21_X1(input A, B1, B2, output ZN);
  wire A_ = A, B1_ = B1, B2_ = B2; wire ZN_ = ~(A_ | (B1_ & B2_)); assign ZN = ZN_;
endmodule
module MUX2_X1(input A, B, S, output Z); wire A_ = A, B_ = B, S_ = S; wire Z_ = S_ ? B_ : A_; assign Z = Z_; endmodule
module HA_X1(input A, B, output CO, S);
  wire A_ = A, B_ = B; wire CO_ = A_ & B_, S_ = A_ ^ B_; assign CO = CO_, S = S_;
endmodule
module TIE_X1(output Z); wire Z_ = 1'b1; assign Z = Z_; endmodule
module DFF_X1(input D, CK, output Q, QN);
  wire D_ = D; reg IQ; always @(posedge CK) IQ <= D_; wire QN_ = ~IQ; assign Q = IQ, QN = QN_;
endmodule
module DFFR_X1(input D, CK, RN, output Q, QN);
  wire D_ = D, RN_ = RN; reg IQ;
  always @(posedge CK) if (RN_) IQ <= D_;
  always @(RN_) if (!RN_) IQ = 0;
  wire Q_ = RN_ & IQ, QN_ = ~(RN_ & IQ); assign Q = Q_, QN = QN_;
endmodule
// set and reset act as long as they are active
module DFFRS_X1(input D, CK, RN, SN, output Q, QN);
  wire D_ = D, RN_ = RN, SN_ = SN; reg IQ;
  always @(posedge CK) if (RN_ & SN_) IQ <= D_;
  always @(RN_ or SN_) if (!RN_) IQ = 0; else if (!SN_) IQ = 1;
  wire Q_ = RN_ & (IQ | ~SN_), QN_ = ~(RN_ & (IQ | ~SN_)); assign Q = Q_, QN = QN_;
endmodule
module DFFE_X1(input D, E, CK, output Q, QN);
  wire D_ = D, E_ = E; reg IQ; always @(posedge CK) if (E_) IQ <= D_;
  wire Q_ = IQ, QN_ = ~IQ; assign Q = Q_, QN = QN_;
endmodule
module SDFF_X1(input D, SE, SI, CK, output Q);
  wire D_ = D, SE_ = SE, SI_ = SI; reg IQ; always @(posedge CK) IQ <= SE_ ? SI_ : D_; assign Q = IQ;
endmodule
module DFFN_X1(input D, CKN, output Q); wire D_ = D; reg IQ; always @(negedge CKN) IQ <= D_; assign Q = IQ; endmodule
module DLH_X1(input D, G, output Q);
  wire D_ = D, G_ = G; reg IQ; always @* if (G_) IQ = D_; wire Q_ = IQ; assign Q = Q_;
endmodule
