// Several clocks, both edges, gated and divided clocks
module crossing(input clk_a, clk_b, rst_n, input [3:0] d, input send, output reg [3:0] got, output busy, output [1:0] parity);
  reg request, a1, a2; reg [3:0] held;
  reg b1, b2, b3;
  assign busy = request ^ a2;
  always @(posedge clk_a or negedge rst_n)
    if (!rst_n) begin request <= 0; held <= 0; a1 <= 0; a2 <= 0; end
    else begin
      a1 <= b3; a2 <= a1;
      if (send && !busy) begin held <= d; request <= ~request; end
    end
  always @(posedge clk_b or negedge rst_n)
    if (!rst_n) begin b1 <= 0; b2 <= 0; b3 <= 0; got <= 0; end
    else begin
      b1 <= request; b2 <= b1; b3 <= b2;
      if (b2 ^ b3) got <= held;
    end
  assign parity = {^held, ^got};
endmodule

module edges(input clk, rst, input [3:0] d, output reg [3:0] rise, fall, output reg [7:0] both);
  always @(posedge clk) rise <= rst ? 4'd0 : d + fall;
  always @(negedge clk) fall <= rst ? 4'd0 : d ^ rise;
  always @(posedge clk) both <= rst ? 8'd0 : {rise, fall};
endmodule

// a clock gate of a latch and an AND, and an inverted clock behind it
module gate_cell(input clk, en, output gated);
  reg open_;
  always @* if (!clk) open_ = en;
  assign gated = clk & open_;
endmodule
module gated(input clk, rst, en, input [3:0] d, output reg [3:0] q, output reg [3:0] inverted, output reg [2:0] count);
  wire gclk;
  gate_cell g(.clk(clk), .en(en | rst), .gated(gclk));
  always @(posedge gclk) q <= rst ? 4'd0 : q + d;
  wire nclk = ~gclk;
  always @(posedge nclk) inverted <= rst ? 4'd0 : q ^ d;
  always @(posedge clk) count <= rst ? 3'd0 : count + 3'd1;
endmodule

module divided(input clk, rst_n, input [3:0] d, output reg half, output reg [3:0] slow, fast);
  always @(posedge clk or negedge rst_n) if (!rst_n) half <= 0; else half <= ~half;
  always @(posedge clk or negedge rst_n) if (!rst_n) fast <= 0; else fast <= fast + d;
  always @(posedge half or negedge rst_n) if (!rst_n) slow <= 0; else slow <= slow + fast;
endmodule

module two_port(input wclk, rclk, rst, we, input [1:0] wa, ra, input [69:0] d, output reg [69:0] q, output [69:0] now);
  reg [69:0] mem [0:3];
  always @(posedge wclk) if (we) mem[wa] <= d;
  always @(posedge rclk) q <= rst ? 70'd0 : mem[ra];
  assign now = mem[ra];
endmodule

module tree(input clk, rst, input [3:0] d, output reg [3:0] q, r);
  wire n1 = ~clk, n2 = ~n1;
  always @(posedge n2) q <= rst ? 4'd0 : q + d;
  always @(negedge n1) r <= rst ? 4'd0 : q;
endmodule
