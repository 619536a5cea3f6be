// A master that reads eight words over a handshake and adds them, and a bench with a memory that answers it late
module reader(input clk, rst, start, output reg req, output reg [2:0] addr, input ack, input [7:0] data,
              output reg done, output reg [7:0] sum);
  reg busy;
  always @(posedge clk) begin
    if (rst) begin req <= 0; addr <= 0; done <= 0; sum <= 0; busy <= 0; end
    else begin
      done <= 0;
      if (start) begin busy <= 1; addr <= 0; sum <= 0; end
      else if (busy && req && ack) begin
        req <= 0; sum <= sum + data; addr <= addr + 3'd1;
        if (addr == 3'd7) begin busy <= 0; done <= 1; end
      end
      else if (busy) req <= 1;
    end
  end
endmodule

module bench(input clk, rst, start, output done, output [7:0] sum, output req, output [2:0] addr);
  wire ack; wire [7:0] data;
  reader dut(.clk(clk), .rst(rst), .start(start), .req(req), .addr(addr), .ack(ack), .data(data), .done(done), .sum(sum));
  slave memory(.clk(clk), .rst(rst), .req(req), .addr(addr), .ack(ack), .data(data));
endmodule

// answers after as many cycles as the two low bits of the address say, once for each request
module slave(input clk, rst, req, input [2:0] addr, output ack, output [7:0] data);
  reg [7:0] words [0:7];
  integer i;
  initial for (i = 0; i < 8; i = i + 1) words[i] = 17 * i + 5;
  reg [1:0] waited;
  always @(posedge clk) waited <= (rst || !req || ack) ? 2'd0 : waited + 2'd1;
  assign ack = req && waited == addr[1:0];
  assign data = ack ? words[addr] : 8'hff;
endmodule
