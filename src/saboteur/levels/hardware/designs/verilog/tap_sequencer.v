// Goes through the products of one image: which activation and which weight is due.
//
// From the outermost loop to the innermost: output row, output column, channel group, row and column in the pooling
// window, row and column in the kernel, input channel. The outputs are registered: one tap a cycle while an image is
// ready and enable is 1.

module tap_sequencer #(
    parameter IN_CHANNELS = 1,
    parameter IN_HEIGHT = 8,
    parameter IN_WIDTH = 8,
    parameter OUT_HEIGHT = 4,
    parameter OUT_WIDTH = 4,
    parameter GROUPS = 1,
    parameter KERNEL = 3,
    parameter STRIDE = 1,
    parameter PADDING = 1,
    parameter POOL = 2,
    parameter ADDRESS_BITS = 6,
    parameter WEIGHT_ADDRESS_BITS = 4
) (
    input  wire                           clk,
    input  wire                           rst,
    input  wire                           enable,
    input  wire                           image_ready,
    output wire                           image_issued,
    output reg                            valid,
    output reg                            first,
    output reg                            last,
    output reg                            image_last,
    output reg                            outside,
    output reg  [ADDRESS_BITS-1:0]        address,
    output reg  [WEIGHT_ADDRESS_BITS-1:0] weight_address
);

    localparam BITS = 16;

    wire            step = image_ready && enable;
    wire [BITS-1:0] out_row, out_column, pool_row, pool_column, kernel_row, kernel_column, channel;
    wire            first_kernel_row, first_kernel_column, first_channel;
    wire            last_out_row, last_out_column, last_group, last_pool_row, last_pool_column;
    wire            last_kernel_row, last_kernel_column, last_channel;

    wire first_tap = first_kernel_row && first_kernel_column && first_channel;
    wire last_tap = last_kernel_row && last_kernel_column && last_channel;
    wire last_window = last_tap && last_pool_row && last_pool_column;
    wire last_position = last_window && last_group;
    wire last_of_image = last_position && last_out_row && last_out_column;

    loop_counter #(.COUNT(IN_CHANNELS), .BITS(BITS)) channels (
        .clk(clk), .rst(rst), .step(step),
        .value(channel), .first(first_channel), .last(last_channel));
    loop_counter #(.COUNT(KERNEL), .BITS(BITS)) kernel_columns (
        .clk(clk), .rst(rst), .step(step && last_channel),
        .value(kernel_column), .first(first_kernel_column), .last(last_kernel_column));
    loop_counter #(.COUNT(KERNEL), .BITS(BITS)) kernel_rows (
        .clk(clk), .rst(rst), .step(step && last_channel && last_kernel_column),
        .value(kernel_row), .first(first_kernel_row), .last(last_kernel_row));
    loop_counter #(.COUNT(POOL), .BITS(BITS)) pool_columns (
        .clk(clk), .rst(rst), .step(step && last_tap),
        .value(pool_column), .first(), .last(last_pool_column));
    loop_counter #(.COUNT(POOL), .BITS(BITS)) pool_rows (
        .clk(clk), .rst(rst), .step(step && last_tap && last_pool_column),
        .value(pool_row), .first(), .last(last_pool_row));
    loop_counter #(.COUNT(GROUPS), .BITS(BITS)) groups (
        .clk(clk), .rst(rst), .step(step && last_window),
        .value(), .first(), .last(last_group));
    loop_counter #(.COUNT(OUT_WIDTH), .BITS(BITS)) out_columns (
        .clk(clk), .rst(rst), .step(step && last_position),
        .value(out_column), .first(), .last(last_out_column));
    loop_counter #(.COUNT(OUT_HEIGHT), .BITS(BITS)) out_rows (
        .clk(clk), .rst(rst), .step(step && last_position && last_out_column),
        .value(out_row), .first(), .last(last_out_row));

    // Weights of a group lie one after the other in the order of the taps; each place of the window needs them again.
    reg  [WEIGHT_ADDRESS_BITS-1:0] weight_pointer, group_start;
    wire [WEIGHT_ADDRESS_BITS-1:0] next_weight = weight_pointer + 1'b1;

    always @(posedge clk) begin
        if (rst) begin
            weight_pointer <= {WEIGHT_ADDRESS_BITS{1'b0}};
            group_start <= {WEIGHT_ADDRESS_BITS{1'b0}};
        end else if (step) begin
            if (last_position) begin
                weight_pointer <= {WEIGHT_ADDRESS_BITS{1'b0}};
                group_start <= {WEIGHT_ADDRESS_BITS{1'b0}};
            end else if (last_window) begin
                weight_pointer <= next_weight;
                group_start <= next_weight;
            end else if (last_tap)
                weight_pointer <= group_start;
            else
                weight_pointer <= next_weight;
        end
    end

    // Place of the tap in the padded image.
    wire [BITS-1:0] row = (out_row * POOL + pool_row) * STRIDE + kernel_row;
    wire [BITS-1:0] column = (out_column * POOL + pool_column) * STRIDE + kernel_column;
    wire            in_image = row >= PADDING && row < PADDING + IN_HEIGHT
                            && column >= PADDING && column < PADDING + IN_WIDTH;
    wire [BITS-1:0] place = ((row - PADDING) * IN_WIDTH + (column - PADDING)) * IN_CHANNELS + channel;

    assign image_issued = step && last_of_image;

    always @(posedge clk) begin
        if (rst) begin
            valid <= 1'b0;
            first <= 1'b0;
            last <= 1'b0;
            image_last <= 1'b0;
            outside <= 1'b0;
            address <= {ADDRESS_BITS{1'b0}};
            weight_address <= {WEIGHT_ADDRESS_BITS{1'b0}};
        end else if (enable) begin
            valid <= image_ready;
            first <= first_tap;
            last <= last_tap;
            image_last <= last_of_image;
            outside <= !in_image;
            address <= in_image ? place[ADDRESS_BITS-1:0] : {ADDRESS_BITS{1'b0}};
            weight_address <= weight_pointer;
        end
    end

endmodule


// Counts 0, 1, ..., COUNT - 1, 0, ... once a step. A counter that has nothing to count has no register.

module loop_counter #(
    parameter COUNT = 2,
    parameter BITS = 16
) (
    input  wire            clk,
    input  wire            rst,
    input  wire            step,
    output wire [BITS-1:0] value,
    output wire            first,
    output wire            last
);

    generate
        if (COUNT > 1) begin : counting
            localparam USED_BITS = $clog2(COUNT);
            reg [USED_BITS-1:0] count;

            assign value = count;
            assign first = count == 0;
            assign last = count == COUNT - 1;

            always @(posedge clk) begin
                if (rst)
                    count <= {USED_BITS{1'b0}};
                else if (step)
                    count <= last ? {USED_BITS{1'b0}} : count + 1'b1;
            end
        end else begin : fixed
            assign value = {BITS{1'b0}};
            assign first = 1'b1;
            assign last = 1'b1;
        end
    endgenerate

endmodule
