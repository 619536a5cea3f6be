// A 2 x 2 mesh as CIRCT 1.62 writes it (python -m benchmarks._mesh 2), without its notes on source lines.


`ifndef RANDOMIZE
  `ifdef RANDOMIZE_REG_INIT
    `define RANDOMIZE
  `endif
`endif


`ifndef RANDOM
  `define RANDOM $random
`endif



`ifndef INIT_RANDOM
  `define INIT_RANDOM
`endif



`ifndef RANDOMIZE_DELAY
  `define RANDOMIZE_DELAY 0.002
`endif


`ifndef INIT_RANDOM_PROLOG_
  `ifdef RANDOMIZE
    `ifdef VERILATOR
      `define INIT_RANDOM_PROLOG_ `INIT_RANDOM
    `else
      `define INIT_RANDOM_PROLOG_ `INIT_RANDOM #`RANDOMIZE_DELAY begin end
    `endif
  `else
    `define INIT_RANDOM_PROLOG_
  `endif
`endif


`ifndef SYNTHESIS
  `ifndef ENABLE_INITIAL_REG_
    `define ENABLE_INITIAL_REG_
  `endif
`endif


`ifndef SYNTHESIS
  `ifndef ENABLE_INITIAL_MEM_
    `define ENABLE_INITIAL_MEM_
  `endif
`endif

module PE(
  input         clock,
  input  [7:0]  a,
  input  [19:0] b,
                d,
  input         dataflow,
                propagate,
  input  [4:0]  shift,
  input         valid,
  output [19:0] out_b,
                out_c
);

  reg  [31:0] c1;
  reg  [31:0] c2;
  reg         before_0;
  wire [31:0] _GEN = before_0 ^ propagate ? {27'h0, shift} : 32'h0;
  wire [31:0] _GEN_0 = propagate ? c1 : c2;
  wire [31:0] _GEN_1 = propagate ? c2 : c1;
  wire [31:0] _GEN_2 =
    {{24{a[7]}}, a} * (dataflow ? {{24{_GEN_1[7]}}, _GEN_1[7:0]} : {{24{b[7]}}, b[7:0]})
    + (dataflow ? {{12{b[19]}}, b} : _GEN_1);
  wire [31:0] _GEN_3 = $signed($signed(_GEN_0) >>> _GEN);
  wire [31:0] _GEN_4 = _GEN - 32'h1;
  wire [31:0] _GEN_5 = _GEN_0 >> _GEN_4;
  wire [31:0] _GEN_6 =
    _GEN_3
    + {31'h0,
       _GEN_5[0] & ((|(_GEN_0 & (32'h1 << _GEN_4) - 32'h1)) | _GEN_3[0])
         & (|(_GEN[4:0]))};
  always @(posedge clock) begin
    automatic logic [31:0] _GEN_7 = {{12{d[19]}}, d};
    automatic logic [31:0] _GEN_8 = dataflow ? _GEN_1 : _GEN_2;
    c1 <= valid ? (propagate ? _GEN_7 : _GEN_8) : c1;
    c2 <= valid ? (propagate ? _GEN_8 : _GEN_7) : c2;
    before_0 <= valid ? propagate : before_0;
  end
  `ifdef ENABLE_INITIAL_REG_
    `ifdef FIRRTL_BEFORE_INITIAL
      `FIRRTL_BEFORE_INITIAL
    `endif
    initial begin
      automatic logic [31:0] _RANDOM[0:2];
      `ifdef INIT_RANDOM_PROLOG_
        `INIT_RANDOM_PROLOG_
      `endif
      `ifdef RANDOMIZE_REG_INIT
        for (logic [1:0] i = 2'h0; i < 2'h3; i += 2'h1) begin
          _RANDOM[i] = `RANDOM;
        end
        c1 = _RANDOM[2'h0];
        c2 = _RANDOM[2'h1];
        before_0 = _RANDOM[2'h2][0];
      `endif
    end
    `ifdef FIRRTL_AFTER_INITIAL
      `FIRRTL_AFTER_INITIAL
    `endif
  `endif
  assign out_b = dataflow ? _GEN_2[19:0] : b;
  assign out_c =
    dataflow
      ? _GEN_0[19:0]
      : $signed(_GEN_6) > 32'sh7FFFF
          ? 20'h7FFFF
          : $signed(_GEN_6) < -32'sh80000 ? 20'h80000 : _GEN_6[19:0];
endmodule

module Mesh(
  input         clock,
                reset,
  input  [7:0]  in_a_0,
                in_a_1,
  input  [19:0] in_b_0,
                in_b_1,
                in_d_0,
                in_d_1,
  input         in_dataflow_0,
                in_dataflow_1,
                in_propagate_0,
                in_propagate_1,
  input  [4:0]  in_shift_0,
                in_shift_1,
  input  [2:0]  in_id_0,
                in_id_1,
  input         in_last_0,
                in_last_1,
                in_valid_0,
                in_valid_1,
  output [19:0] out_b_0,
                out_b_1,
                out_c_0,
                out_c_1,
  output        out_valid_0,
                out_valid_1,
                out_propagate_0,
                out_propagate_1,
                out_dataflow_0,
                out_dataflow_1,
  output [4:0]  out_shift_0,
                out_shift_1,
  output [2:0]  out_id_0,
                out_id_1,
  output        out_last_0,
                out_last_1
);

  wire [19:0] _pe_0_1_out_b;
  wire [19:0] _pe_0_1_out_c;
  wire [19:0] _pe_0_0_out_b;
  wire [19:0] _pe_0_0_out_c;
  reg  [19:0] b_0_0;
  reg  [19:0] d_0_0;
  reg         dataflow_0_0;
  reg         propagate_0_0;
  reg  [4:0]  shift_0_0;
  reg  [2:0]  id_0_0;
  reg         last_0_0;
  reg         valid_0_0;
  reg  [7:0]  a_0_0;
  reg  [19:0] b_0_1;
  reg  [19:0] d_0_1;
  reg         dataflow_0_1;
  reg         propagate_0_1;
  reg  [4:0]  shift_0_1;
  reg  [2:0]  id_0_1;
  reg         last_0_1;
  reg         valid_0_1;
  reg  [7:0]  a_0_1;
  reg  [19:0] b_1_0;
  reg  [19:0] d_1_0;
  reg         dataflow_1_0;
  reg         propagate_1_0;
  reg  [4:0]  shift_1_0;
  reg  [2:0]  id_1_0;
  reg         last_1_0;
  reg         valid_1_0;
  reg  [7:0]  a_1_0;
  reg  [19:0] b_1_1;
  reg  [19:0] d_1_1;
  reg         dataflow_1_1;
  reg         propagate_1_1;
  reg  [4:0]  shift_1_1;
  reg  [2:0]  id_1_1;
  reg         last_1_1;
  reg         valid_1_1;
  reg  [7:0]  a_1_1;
  always @(posedge clock) begin
    b_0_0 <= in_valid_0 ? in_b_0 : b_0_0;
    d_0_0 <= in_valid_0 ? in_d_0 : d_0_0;
    dataflow_0_0 <= in_valid_0 ? in_dataflow_0 : dataflow_0_0;
    propagate_0_0 <= in_valid_0 ? in_propagate_0 : propagate_0_0;
    shift_0_0 <= in_valid_0 ? in_shift_0 : shift_0_0;
    id_0_0 <= in_valid_0 ? in_id_0 : id_0_0;
    last_0_0 <= in_valid_0 ? in_last_0 : last_0_0;
    a_0_0 <= in_a_0;
    b_0_1 <= in_valid_1 ? in_b_1 : b_0_1;
    d_0_1 <= in_valid_1 ? in_d_1 : d_0_1;
    dataflow_0_1 <= in_valid_1 ? in_dataflow_1 : dataflow_0_1;
    propagate_0_1 <= in_valid_1 ? in_propagate_1 : propagate_0_1;
    shift_0_1 <= in_valid_1 ? in_shift_1 : shift_0_1;
    id_0_1 <= in_valid_1 ? in_id_1 : id_0_1;
    last_0_1 <= in_valid_1 ? in_last_1 : last_0_1;
    a_0_1 <= a_0_0;
    b_1_0 <= valid_0_0 ? _pe_0_0_out_b : b_1_0;
    d_1_0 <= valid_0_0 ? _pe_0_0_out_c : d_1_0;
    dataflow_1_0 <= valid_0_0 ? dataflow_0_0 : dataflow_1_0;
    propagate_1_0 <= valid_0_0 ? propagate_0_0 : propagate_1_0;
    shift_1_0 <= valid_0_0 ? shift_0_0 : shift_1_0;
    id_1_0 <= valid_0_0 ? id_0_0 : id_1_0;
    last_1_0 <= valid_0_0 ? last_0_0 : last_1_0;
    a_1_0 <= in_a_1;
    b_1_1 <= valid_0_1 ? _pe_0_1_out_b : b_1_1;
    d_1_1 <= valid_0_1 ? _pe_0_1_out_c : d_1_1;
    dataflow_1_1 <= valid_0_1 ? dataflow_0_1 : dataflow_1_1;
    propagate_1_1 <= valid_0_1 ? propagate_0_1 : propagate_1_1;
    shift_1_1 <= valid_0_1 ? shift_0_1 : shift_1_1;
    id_1_1 <= valid_0_1 ? id_0_1 : id_1_1;
    last_1_1 <= valid_0_1 ? last_0_1 : last_1_1;
    a_1_1 <= a_1_0;
  end
  always @(posedge clock) begin
    if (reset) begin
      valid_0_0 <= 1'h0;
      valid_0_1 <= 1'h0;
      valid_1_0 <= 1'h0;
      valid_1_1 <= 1'h0;
    end
    else begin
      valid_0_0 <= in_valid_0;
      valid_0_1 <= in_valid_1;
      valid_1_0 <= valid_0_0;
      valid_1_1 <= valid_0_1;
    end
  end
  `ifdef ENABLE_INITIAL_REG_
    `ifdef FIRRTL_BEFORE_INITIAL
      `FIRRTL_BEFORE_INITIAL
    `endif
    initial begin
      automatic logic [31:0] _RANDOM[0:7];
      `ifdef INIT_RANDOM_PROLOG_
        `INIT_RANDOM_PROLOG_
      `endif
      `ifdef RANDOMIZE_REG_INIT
        for (logic [3:0] i = 4'h0; i < 4'h8; i += 4'h1) begin
          _RANDOM[i[2:0]] = `RANDOM;
        end
        b_0_0 = _RANDOM[3'h0][19:0];
        d_0_0 = {_RANDOM[3'h0][31:20], _RANDOM[3'h1][7:0]};
        dataflow_0_0 = _RANDOM[3'h1][8];
        propagate_0_0 = _RANDOM[3'h1][9];
        shift_0_0 = _RANDOM[3'h1][14:10];
        id_0_0 = _RANDOM[3'h1][17:15];
        last_0_0 = _RANDOM[3'h1][18];
        valid_0_0 = _RANDOM[3'h1][19];
        a_0_0 = _RANDOM[3'h1][27:20];
        b_0_1 = {_RANDOM[3'h1][31:28], _RANDOM[3'h2][15:0]};
        d_0_1 = {_RANDOM[3'h2][31:16], _RANDOM[3'h3][3:0]};
        dataflow_0_1 = _RANDOM[3'h3][4];
        propagate_0_1 = _RANDOM[3'h3][5];
        shift_0_1 = _RANDOM[3'h3][10:6];
        id_0_1 = _RANDOM[3'h3][13:11];
        last_0_1 = _RANDOM[3'h3][14];
        valid_0_1 = _RANDOM[3'h3][15];
        a_0_1 = _RANDOM[3'h3][23:16];
        b_1_0 = {_RANDOM[3'h3][31:24], _RANDOM[3'h4][11:0]};
        d_1_0 = _RANDOM[3'h4][31:12];
        dataflow_1_0 = _RANDOM[3'h5][0];
        propagate_1_0 = _RANDOM[3'h5][1];
        shift_1_0 = _RANDOM[3'h5][6:2];
        id_1_0 = _RANDOM[3'h5][9:7];
        last_1_0 = _RANDOM[3'h5][10];
        valid_1_0 = _RANDOM[3'h5][11];
        a_1_0 = _RANDOM[3'h5][19:12];
        b_1_1 = {_RANDOM[3'h5][31:20], _RANDOM[3'h6][7:0]};
        d_1_1 = _RANDOM[3'h6][27:8];
        dataflow_1_1 = _RANDOM[3'h6][28];
        propagate_1_1 = _RANDOM[3'h6][29];
        shift_1_1 = {_RANDOM[3'h6][31:30], _RANDOM[3'h7][2:0]};
        id_1_1 = _RANDOM[3'h7][5:3];
        last_1_1 = _RANDOM[3'h7][6];
        valid_1_1 = _RANDOM[3'h7][7];
        a_1_1 = _RANDOM[3'h7][15:8];
      `endif
    end
    `ifdef FIRRTL_AFTER_INITIAL
      `FIRRTL_AFTER_INITIAL
    `endif
  `endif
  PE pe_0_0 (
    .clock     (clock),
    .a         (a_0_0),
    .b         (b_0_0),
    .d         (d_0_0),
    .dataflow  (dataflow_0_0),
    .propagate (propagate_0_0),
    .shift     (shift_0_0),
    .valid     (valid_0_0),
    .out_b     (_pe_0_0_out_b),
    .out_c     (_pe_0_0_out_c)
  );
  PE pe_0_1 (
    .clock     (clock),
    .a         (a_0_1),
    .b         (b_0_1),
    .d         (d_0_1),
    .dataflow  (dataflow_0_1),
    .propagate (propagate_0_1),
    .shift     (shift_0_1),
    .valid     (valid_0_1),
    .out_b     (_pe_0_1_out_b),
    .out_c     (_pe_0_1_out_c)
  );
  PE pe_1_0 (
    .clock     (clock),
    .a         (a_1_0),
    .b         (b_1_0),
    .d         (d_1_0),
    .dataflow  (dataflow_1_0),
    .propagate (propagate_1_0),
    .shift     (shift_1_0),
    .valid     (valid_1_0),
    .out_b     (out_b_0),
    .out_c     (out_c_0)
  );
  PE pe_1_1 (
    .clock     (clock),
    .a         (a_1_1),
    .b         (b_1_1),
    .d         (d_1_1),
    .dataflow  (dataflow_1_1),
    .propagate (propagate_1_1),
    .shift     (shift_1_1),
    .valid     (valid_1_1),
    .out_b     (out_b_1),
    .out_c     (out_c_1)
  );
  assign out_valid_0 = valid_1_0;
  assign out_valid_1 = valid_1_1;
  assign out_propagate_0 = propagate_1_0;
  assign out_propagate_1 = propagate_1_1;
  assign out_dataflow_0 = dataflow_1_0;
  assign out_dataflow_1 = dataflow_1_1;
  assign out_shift_0 = shift_1_0;
  assign out_shift_1 = shift_1_1;
  assign out_id_0 = id_1_0;
  assign out_id_1 = id_1_1;
  assign out_last_0 = last_1_0;
  assign out_last_1 = last_1_1;
endmodule

