// Outer-product array: every cycle takes a column of A and a row of B, and broadcasts them to all cells of a grid, which
// add their products up. When the last pair of a tile has been added, the sums move into a second set of registers,
// from which a counter reads them out row by row, while the grid works on the next tile.

typedef struct packed {
    logic active;
    logic first;
    logic last;
} step_t;

module broadcast_array #(
    parameter int unsigned ROWS = 4,
    parameter int unsigned COLS = 4,
    parameter int unsigned WIDTH = 8,
    parameter int unsigned SUM = 32
) (
    input  logic                       clock,
    input  logic                       reset_n,
    input  step_t                      step,
    input  logic [ROWS-1:0][WIDTH-1:0] column_of_a,
    input  logic [COLS-1:0][WIDTH-1:0] row_of_b,
    output logic                       reading,
    output logic [COLS-1:0][SUM-1:0]   row_of_c
);
    localparam int unsigned COUNT = $clog2(ROWS + 1);

    step_t                                 step_q;
    logic [ROWS-1:0][WIDTH-1:0]            a_q;
    logic [COLS-1:0][WIDTH-1:0]            b_q;
    logic [COUNT-1:0]                      row_q;
    logic [ROWS-1:0][COLS-1:0][SUM-1:0]    finished;

    always_ff @(posedge clock) begin
        a_q <= column_of_a;
        b_q <= row_of_b;
        if (!reset_n) step_q <= '0;
        else          step_q <= step;
    end

    // Counts up to ROWS, where it rests.
    always_ff @(posedge clock) begin
        if (!reset_n)                   row_q <= COUNT'(ROWS);
        else if (step_q.last)           row_q <= '0;
        else if (row_q != COUNT'(ROWS)) row_q <= row_q + 1'b1;
    end

    for (genvar i = 0; i < ROWS; i++) begin : grid
        for (genvar j = 0; j < COLS; j++) begin : cells
            outer_product_cell #(.WIDTH(WIDTH), .SUM(SUM)) unit (
                .clock, .step(step_q), .a(a_q[i]), .b(b_q[j]), .finished(finished[i][j])
            );
        end
    end

    assign reading = row_q != COUNT'(ROWS);

    always_comb begin
        row_of_c = '0;
        for (int unsigned i = 0; i < ROWS; i++)
            if (row_q == COUNT'(i)) row_of_c = finished[i];
    end
endmodule


module outer_product_cell #(
    parameter int unsigned WIDTH = 8,
    parameter int unsigned SUM = 32
) (
    input  logic                    clock,
    input  step_t                   step,
    input  logic signed [WIDTH-1:0] a,
    input  logic signed [WIDTH-1:0] b,
    output logic [SUM-1:0]          finished
);
    logic signed [SUM-1:0] sum, base, next;

    assign base = step.first ? '0 : sum;
    assign next = base + a * b;

    always_ff @(posedge clock) begin
        if (step.active) sum <= next;
        if (step.last)   finished <= next;
    end
endmodule
