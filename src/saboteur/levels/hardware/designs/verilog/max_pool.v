// Keeps the largest value of each lane over the places of a pooling window, and passes it on at the last place.

module max_pool #(
    parameter DATA_WIDTH = 8,
    parameter LANES = 8,
    parameter LANE_BITS = 3
) (
    input  wire                         clk,
    input  wire                         rst,
    input  wire                         flow,
    input  wire                         in_valid,
    input  wire signed [DATA_WIDTH-1:0] in_data,
    input  wire [LANE_BITS-1:0]         in_lane,
    input  wire                         in_first,
    input  wire                         in_last,
    output reg                          out_valid,
    output reg  signed [DATA_WIDTH-1:0] out_data
);

    reg signed [DATA_WIDTH-1:0] best [0:LANES-1];

    wire signed [DATA_WIDTH-1:0] earlier = best[in_lane];
    wire signed [DATA_WIDTH-1:0] larger = in_first || in_data > earlier ? in_data : earlier;

    always @(posedge clk) begin
        if (flow && in_valid)
            best[in_lane] <= larger;
    end

    always @(posedge clk) begin
        if (rst) begin
            out_valid <= 1'b0;
            out_data <= {DATA_WIDTH{1'b0}};
        end else if (flow) begin
            out_valid <= in_valid && in_last;
            out_data <= larger;
        end
    end

endmodule
