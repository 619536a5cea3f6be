// Weight-stationary systolic array: C = A * B + P, one element of B in each processing element (PE).
//
// The weights B are shifted in from the north. Then A enters from the west, one column of A to a row of PEs, row i
// skewed by i cycles, and partial sums flow south: PE (i, j) adds A[m][i] * B[i][j] to the sum that comes from the
// north. The sums that enter row 0 are P: zero, a bias, or what an earlier part of a longer product left.
//
// Controls enter with the operands, one set for each row, and travel east through a register in every PE:
//   valid  multiply the activation by the weight, add the sum from the north, keep it
//   load   take the weight of the northern neighbour (of the port in row 0)
//
// Numbers are two's complement. Sums wrap modulo 2^ACC_WIDTH; ACC_WIDTH >= 2 * DATA_WIDTH.
// Lane i of a port is at [i * width +: width]. North ports are not registered before use: they are due one cycle
// after the control of row 0 that uses them. The schedule is in docs/designs.md.

module weight_stationary #(
    parameter ROWS = 8,
    parameter COLS = 8,
    parameter DATA_WIDTH = 8,
    parameter ACC_WIDTH = 32
) (
    input  wire                       clk,
    input  wire                       rst,
    input  wire [ROWS-1:0]            valid,
    input  wire [ROWS-1:0]            load,
    input  wire [ROWS*DATA_WIDTH-1:0] west,
    input  wire [COLS*DATA_WIDTH-1:0] north_weight,
    input  wire [COLS*ACC_WIDTH-1:0]  north_sum,
    output wire [COLS*ACC_WIDTH-1:0]  south,
    output reg  [COLS-1:0]            south_valid
);

    // What flows east past column j of row i has index i * (COLS + 1) + j; what flows south, i * COLS + j.
    wire [ROWS*(COLS+1)*DATA_WIDTH-1:0] activations;
    wire [ROWS*(COLS+1)-1:0]            valids;
    wire [ROWS*(COLS+1)-1:0]            loads;
    wire [(ROWS+1)*COLS*DATA_WIDTH-1:0] weights;
    wire [(ROWS+1)*COLS*ACC_WIDTH-1:0]  sums;
    wire [COLS-1:0]                     last_valids;

    assign weights[0 +: COLS*DATA_WIDTH] = north_weight;
    assign sums[0 +: COLS*ACC_WIDTH] = north_sum;
    assign south = sums[ROWS*COLS*ACC_WIDTH +: COLS*ACC_WIDTH];

    genvar i, j;
    generate
        for (i = 0; i < ROWS; i = i + 1) begin : row
            assign activations[i*(COLS+1)*DATA_WIDTH +: DATA_WIDTH] = west[i*DATA_WIDTH +: DATA_WIDTH];
            assign valids[i*(COLS+1)] = valid[i];
            assign loads[i*(COLS+1)] = load[i];
            for (j = 0; j < COLS; j = j + 1) begin : column
                weight_stationary_pe #(
                    .DATA_WIDTH(DATA_WIDTH),
                    .ACC_WIDTH(ACC_WIDTH)
                ) pe (
                    .clk(clk),
                    .rst(rst),
                    .activation_in(activations[(i*(COLS+1)+j)*DATA_WIDTH +: DATA_WIDTH]),
                    .weight_in(weights[(i*COLS+j)*DATA_WIDTH +: DATA_WIDTH]),
                    .sum_in(sums[(i*COLS+j)*ACC_WIDTH +: ACC_WIDTH]),
                    .valid_in(valids[i*(COLS+1)+j]),
                    .load_in(loads[i*(COLS+1)+j]),
                    .activation(activations[(i*(COLS+1)+j+1)*DATA_WIDTH +: DATA_WIDTH]),
                    .weight(weights[((i+1)*COLS+j)*DATA_WIDTH +: DATA_WIDTH]),
                    .sum(sums[((i+1)*COLS+j)*ACC_WIDTH +: ACC_WIDTH]),
                    .valid(valids[i*(COLS+1)+j+1]),
                    .load(loads[i*(COLS+1)+j+1])
                );
            end
        end
        for (j = 0; j < COLS; j = j + 1) begin : last
            assign last_valids[j] = valids[(ROWS-1)*(COLS+1)+j+1];
        end
    endgenerate

    always @(posedge clk) begin
        if (rst)
            south_valid <= {COLS{1'b0}};
        else
            south_valid <= last_valids;
    end

endmodule


module weight_stationary_pe #(
    parameter DATA_WIDTH = 8,
    parameter ACC_WIDTH = 32
) (
    input  wire                         clk,
    input  wire                         rst,
    input  wire signed [DATA_WIDTH-1:0] activation_in,
    input  wire signed [DATA_WIDTH-1:0] weight_in,
    input  wire signed [ACC_WIDTH-1:0]  sum_in,
    input  wire                         valid_in,
    input  wire                         load_in,
    output reg  signed [DATA_WIDTH-1:0] activation,
    output reg  signed [DATA_WIDTH-1:0] weight,
    output reg  signed [ACC_WIDTH-1:0]  sum,
    output reg                          valid,
    output reg                          load
);

    wire signed [2*DATA_WIDTH-1:0] product = activation * weight;

    always @(posedge clk) begin
        if (rst) begin
            activation <= {DATA_WIDTH{1'b0}};
            weight <= {DATA_WIDTH{1'b0}};
            sum <= {ACC_WIDTH{1'b0}};
            valid <= 1'b0;
            load <= 1'b0;
        end else begin
            activation <= activation_in;
            valid <= valid_in;
            load <= load_in;
            if (load)
                weight <= weight_in;
            if (valid)
                sum <= sum_in + product;
        end
    end

endmodule
