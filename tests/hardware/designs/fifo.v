module fifo #(parameter W = 8, DEPTH = 16, A = 4)(input clk, input rst, input push, input pop, input [W-1:0] din,
    input [1:0] lanes, output [W-1:0] dout, output reg [W-1:0] last, output empty, output full);
  reg [W-1:0] store [0:DEPTH-1];
  reg [A:0] used; reg [A-1:0] head, tail;
  assign empty = used == 0; assign full = used == DEPTH; assign dout = store[head];
  always @(posedge clk) begin
    if (push && !full) begin
      if (lanes[0]) store[tail][W/2-1:0] <= din[W/2-1:0];
      if (lanes[1]) store[tail][W-1:W/2] <= din[W-1:W/2];
    end
    last <= store[head];
    if (rst) begin used <= 0; head <= 0; tail <= 0; end
    else begin
      if (push && !full) tail <= tail + 1;
      if (pop && !empty) head <= head + 1;
      used <= used + (push && !full) - (pop && !empty);
    end
  end
endmodule
