`include "stream_width.svh"
// Packages, structures, interfaces and generated instances
package stream_types;
  typedef struct packed { logic [`STREAM_WIDTH-1:0] data; logic last; } word_t;
endpackage

interface channel(input clk);
  logic valid;
  stream_types::word_t word;
  modport source(output valid, word);
  modport sink(input valid, word);
endinterface

module producer import stream_types::*; #(parameter int STEP = 1) (input clk, rst, channel.source out);
  always_ff @(posedge clk)
    if (rst) begin
      out.valid <= 1'b0;
      out.word <= '{data: '0, last: 1'b0};
    end else begin
      out.valid <= 1'b1;
      out.word <= '{data: out.word.data + STEP, last: &out.word.data[1:0]};
    end
endmodule

module stream #(parameter int N = 3) (input clk, rst, output logic [N-1:0][4:0] data, output logic [N-1:0] last);
  for (genvar i = 0; i < N; i++) begin : lane
    channel link(clk);
    producer #(.STEP(i < 2 ? 3 : 5)) from(.clk, .rst, .out(link));
    always_comb begin
      data[i] = link.valid ? link.word.data : '0;
      last[i] = link.word.last;
    end
  end
endmodule
