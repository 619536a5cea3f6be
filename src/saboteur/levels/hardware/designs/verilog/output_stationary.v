// Output-stationary systolic array: C = A * B, one element of C in each processing element (PE).
//
// A enters from the west, one row of A to a row of PEs; B enters from the north, one column of B to a column of
// PEs. Row i and column j are skewed by i and j cycles, so that A[i][k] and B[k][j] meet in PE (i, j). The sums
// stay where they are until the drain wave moves them south.
//
// Controls enter with the operands, one set for each row, and travel east through a register in every PE:
//   valid  multiply the two operands and accumulate
//   clear  together with valid: start a new sum from this product
//   drain  take the accumulator of the northern neighbour (zero in row 0); wins over valid
//
// Numbers are two's complement. The accumulator wraps modulo 2^ACC_WIDTH; ACC_WIDTH >= 2 * DATA_WIDTH.
// Lane i of a port is at [i * width +: width]. The schedule is in docs/designs.md.

module output_stationary #(
    parameter ROWS = 8,
    parameter COLS = 8,
    parameter DATA_WIDTH = 8,
    parameter ACC_WIDTH = 32
) (
    input  wire                       clk,
    input  wire                       rst,
    input  wire [ROWS-1:0]            valid,
    input  wire [ROWS-1:0]            clear,
    input  wire [ROWS-1:0]            drain,
    input  wire [ROWS*DATA_WIDTH-1:0] west,
    input  wire [COLS*DATA_WIDTH-1:0] north,
    output wire [COLS*ACC_WIDTH-1:0]  south,
    output wire [COLS-1:0]            south_valid
);

    // What flows east past column j of row i has index i * (COLS + 1) + j; what flows south, i * COLS + j.
    wire [ROWS*(COLS+1)*DATA_WIDTH-1:0] a;
    wire [ROWS*(COLS+1)-1:0]            valids;
    wire [ROWS*(COLS+1)-1:0]            clears;
    wire [ROWS*(COLS+1)-1:0]            drains;
    wire [(ROWS+1)*COLS*DATA_WIDTH-1:0] b;
    wire [(ROWS+1)*COLS*ACC_WIDTH-1:0]  sums;

    assign b[0 +: COLS*DATA_WIDTH] = north;
    assign sums[0 +: COLS*ACC_WIDTH] = {COLS*ACC_WIDTH{1'b0}};
    assign south = sums[ROWS*COLS*ACC_WIDTH +: COLS*ACC_WIDTH];

    genvar i, j;
    generate
        for (i = 0; i < ROWS; i = i + 1) begin : row
            assign a[i*(COLS+1)*DATA_WIDTH +: DATA_WIDTH] = west[i*DATA_WIDTH +: DATA_WIDTH];
            assign valids[i*(COLS+1)] = valid[i];
            assign clears[i*(COLS+1)] = clear[i];
            assign drains[i*(COLS+1)] = drain[i];
            for (j = 0; j < COLS; j = j + 1) begin : column
                output_stationary_pe #(
                    .DATA_WIDTH(DATA_WIDTH),
                    .ACC_WIDTH(ACC_WIDTH)
                ) pe (
                    .clk(clk),
                    .rst(rst),
                    .a_in(a[(i*(COLS+1)+j)*DATA_WIDTH +: DATA_WIDTH]),
                    .b_in(b[(i*COLS+j)*DATA_WIDTH +: DATA_WIDTH]),
                    .acc_in(sums[(i*COLS+j)*ACC_WIDTH +: ACC_WIDTH]),
                    .valid_in(valids[i*(COLS+1)+j]),
                    .clear_in(clears[i*(COLS+1)+j]),
                    .drain_in(drains[i*(COLS+1)+j]),
                    .a(a[(i*(COLS+1)+j+1)*DATA_WIDTH +: DATA_WIDTH]),
                    .b(b[((i+1)*COLS+j)*DATA_WIDTH +: DATA_WIDTH]),
                    .acc(sums[((i+1)*COLS+j)*ACC_WIDTH +: ACC_WIDTH]),
                    .valid(valids[i*(COLS+1)+j+1]),
                    .clear(clears[i*(COLS+1)+j+1]),
                    .drain(drains[i*(COLS+1)+j+1])
                );
            end
        end
        for (j = 0; j < COLS; j = j + 1) begin : drained
            assign south_valid[j] = drains[(ROWS-1)*(COLS+1)+j+1];
        end
    endgenerate

endmodule


module output_stationary_pe #(
    parameter DATA_WIDTH = 8,
    parameter ACC_WIDTH = 32
) (
    input  wire                         clk,
    input  wire                         rst,
    input  wire signed [DATA_WIDTH-1:0] a_in,
    input  wire signed [DATA_WIDTH-1:0] b_in,
    input  wire signed [ACC_WIDTH-1:0]  acc_in,
    input  wire                         valid_in,
    input  wire                         clear_in,
    input  wire                         drain_in,
    output reg  signed [DATA_WIDTH-1:0] a,
    output reg  signed [DATA_WIDTH-1:0] b,
    output reg  signed [ACC_WIDTH-1:0]  acc,
    output reg                          valid,
    output reg                          clear,
    output reg                          drain
);

    wire signed [2*DATA_WIDTH-1:0] product = a * b;
    wire signed [ACC_WIDTH-1:0]    base = clear ? {ACC_WIDTH{1'b0}} : acc;

    always @(posedge clk) begin
        if (rst) begin
            a <= {DATA_WIDTH{1'b0}};
            b <= {DATA_WIDTH{1'b0}};
            acc <= {ACC_WIDTH{1'b0}};
            valid <= 1'b0;
            clear <= 1'b0;
            drain <= 1'b0;
        end else begin
            a <= a_in;
            b <= b_in;
            valid <= valid_in;
            clear <= clear_in;
            drain <= drain_in;
            if (drain)
                acc <= acc_in;
            else if (valid)
                acc <= base + product;
        end
    end

endmodule
