// One layer of a network: convolution or fully connected layer, requantisation, optional ReLU and max pooling.
//
// Engines are chained by ready/valid streams into a pipeline in which every layer works on an image of its own.
// An image is a stream of IN_HEIGHT * IN_WIDTH * IN_CHANNELS values, channels fastest, then columns, then rows. It
// fills one bank of the input buffer while the engine reads the other. The results leave in the same order.
//
// PES processing elements work on PES output channels of one output position at a time, each with its own weight
// memory. For an output position (row, column), then a group of PES channels, then a place in the POOL * POOL
// window, one activation a cycle goes to all PEs. A fully connected layer is a convolution of a 1 * 1 image with
// a 1 * 1 kernel.
//
//   tap_sequencer -> input_buffer -> PES * layer_pe -> requantizer -> max_pool -> out
//      address        activation      product, sum      five stages    (POOL > 1)
//
// The sums of a group move into the shift register of the "held" registers, from which the requantiser takes one a
// cycle while the PEs work on. If it is not done when the next sums are, all stages up to the sums wait
// (enable = 0). If the next layer is not ready, all stages from the held sums on wait (flow = 0).
//
// Memories are written through the load port, before or between images; load_memory says which:
//   0 biases, 1 multipliers, 2 shifts (address: output channel), 3 zero points (0 input, 1 output),
//   4 + p weights of PE p (address: group * TAPS + (kernel_row * KERNEL + kernel_column) * IN_CHANNELS + channel)
//
// The arithmetic is that of saboteur.workloads.int8, for any DATA_WIDTH. Sums wrap modulo 2^ACC_WIDTH.

module layer_engine #(
    parameter DATA_WIDTH = 8,
    parameter ACC_WIDTH = 32,
    parameter PES = 8,
    parameter IN_CHANNELS = 1,
    parameter IN_HEIGHT = 8,
    parameter IN_WIDTH = 8,
    parameter OUT_CHANNELS = 6,
    parameter KERNEL = 3,
    parameter STRIDE = 1,
    parameter PADDING = 1,
    parameter POOL = 2,
    parameter RELU = 1
) (
    input  wire                         clk,
    input  wire                         rst,
    input  wire                         load,
    input  wire [7:0]                   load_memory,
    input  wire [15:0]                  load_address,
    input  wire [31:0]                  load_data,
    input  wire                         in_valid,
    output wire                         in_ready,
    input  wire signed [DATA_WIDTH-1:0] in_data,
    output wire                         out_valid,
    input  wire                         out_ready,
    output wire signed [DATA_WIDTH-1:0] out_data
);

    localparam IN_SIZE = IN_HEIGHT * IN_WIDTH * IN_CHANNELS;
    localparam OUT_HEIGHT = ((IN_HEIGHT + 2 * PADDING - KERNEL) / STRIDE + 1) / POOL;
    localparam OUT_WIDTH = ((IN_WIDTH + 2 * PADDING - KERNEL) / STRIDE + 1) / POOL;
    localparam TAPS = KERNEL * KERNEL * IN_CHANNELS;
    localparam GROUPS = (OUT_CHANNELS + PES - 1) / PES;
    localparam ADDRESS_BITS = IN_SIZE > 1 ? $clog2(IN_SIZE) : 1;
    localparam WEIGHT_ADDRESS_BITS = GROUPS * TAPS > 1 ? $clog2(GROUPS * TAPS) : 1;
    localparam LANE_BITS = PES > 1 ? $clog2(PES) : 1;
    localparam CHANNEL_BITS = OUT_CHANNELS > 1 ? $clog2(OUT_CHANNELS) : 1;

    localparam BIASES = 0;
    localparam MULTIPLIERS = 1;
    localparam SHIFTS = 2;
    localparam ZERO_POINTS = 3;
    localparam WEIGHTS = 4;

    reg  signed [DATA_WIDTH-1:0] zero_points [0:1];
    wire signed [DATA_WIDTH-1:0] input_zero_point = zero_points[0];
    wire signed [DATA_WIDTH-1:0] output_zero_point = zero_points[1];

    always @(posedge clk) begin
        if (load && load_memory == ZERO_POINTS)
            zero_points[load_address[0]] <= load_data[DATA_WIDTH-1:0];
    end

    // Activations: which, then their values.

    wire                           enable;
    wire                           image_ready;
    wire                           image_issued;
    wire                           tap_valid, tap_first, tap_last, tap_image_last, tap_outside;
    wire [ADDRESS_BITS-1:0]        tap_address;
    wire [WEIGHT_ADDRESS_BITS-1:0] tap_weight_address;
    wire signed [DATA_WIDTH-1:0]   activation;

    tap_sequencer #(
        .IN_CHANNELS(IN_CHANNELS),
        .IN_HEIGHT(IN_HEIGHT),
        .IN_WIDTH(IN_WIDTH),
        .OUT_HEIGHT(OUT_HEIGHT),
        .OUT_WIDTH(OUT_WIDTH),
        .GROUPS(GROUPS),
        .KERNEL(KERNEL),
        .STRIDE(STRIDE),
        .PADDING(PADDING),
        .POOL(POOL),
        .ADDRESS_BITS(ADDRESS_BITS),
        .WEIGHT_ADDRESS_BITS(WEIGHT_ADDRESS_BITS)
    ) sequencer (
        .clk(clk),
        .rst(rst),
        .enable(enable),
        .image_ready(image_ready),
        .image_issued(image_issued),
        .valid(tap_valid),
        .first(tap_first),
        .last(tap_last),
        .image_last(tap_image_last),
        .outside(tap_outside),
        .address(tap_address),
        .weight_address(tap_weight_address)
    );

    input_buffer #(
        .DATA_WIDTH(DATA_WIDTH),
        .SIZE(IN_SIZE),
        .ADDRESS_BITS(ADDRESS_BITS)
    ) buffer (
        .clk(clk),
        .rst(rst),
        .in_valid(in_valid),
        .in_ready(in_ready),
        .in_data(in_data),
        .image_ready(image_ready),
        .image_issued(image_issued),
        .enable(enable),
        .address(tap_address),
        .release_bank(tap_valid && tap_image_last),
        .value(activation)
    );

    // Products and sums. Each stage carries whether it holds something and where in the sum that is.

    reg read_valid, read_first, read_last, read_outside;
    reg product_valid, product_first, product_last;
    reg sums_valid;

    always @(posedge clk) begin
        if (rst) begin
            read_valid <= 1'b0;
            read_first <= 1'b0;
            read_last <= 1'b0;
            read_outside <= 1'b0;
            product_valid <= 1'b0;
            product_first <= 1'b0;
            product_last <= 1'b0;
            sums_valid <= 1'b0;
        end else if (enable) begin
            read_valid <= tap_valid;
            read_first <= tap_first;
            read_last <= tap_last;
            read_outside <= tap_outside;
            product_valid <= read_valid;
            product_first <= read_first;
            product_last <= read_last;
            sums_valid <= product_valid && product_last;
        end
    end

    // What lies outside the image is the real number 0, that is the zero point.
    wire signed [DATA_WIDTH:0] centred = activation - input_zero_point;
    wire signed [DATA_WIDTH:0] operand = read_outside ? {DATA_WIDTH+1{1'b0}} : centred;

    reg  holding;
    wire flow;
    wire capture = sums_valid && !holding;
    wire shift = holding && flow;

    assign enable = !(sums_valid && holding);

    wire [(PES+1)*ACC_WIDTH-1:0] held;
    assign held[PES*ACC_WIDTH +: ACC_WIDTH] = {ACC_WIDTH{1'b0}};

    genvar p;
    generate
        for (p = 0; p < PES; p = p + 1) begin : lane
            layer_pe #(
                .DATA_WIDTH(DATA_WIDTH),
                .ACC_WIDTH(ACC_WIDTH),
                .DEPTH(GROUPS * TAPS),
                .ADDRESS_BITS(WEIGHT_ADDRESS_BITS)
            ) pe (
                .clk(clk),
                .rst(rst),
                .load(load && load_memory == WEIGHTS + p),
                .load_address(load_address[WEIGHT_ADDRESS_BITS-1:0]),
                .load_data(load_data[DATA_WIDTH-1:0]),
                .enable(enable),
                .weight_address(tap_weight_address),
                .operand(operand),
                .accumulate(product_valid),
                .first(product_first),
                .capture(capture),
                .shift(shift),
                .held_in(held[(p+1)*ACC_WIDTH +: ACC_WIDTH]),
                .held(held[p*ACC_WIDTH +: ACC_WIDTH])
            );
        end
    endgenerate

    // Held sums leave one by one: channel of the sum, lane it came from, place in the pooling window.

    reg [LANE_BITS-1:0]    held_lane;
    reg [CHANNEL_BITS-1:0] held_channel;
    wire                   last_channel = held_channel == OUT_CHANNELS - 1;
    wire                   last_lane = held_lane == PES - 1 || last_channel;
    wire                   window_first, window_last;

    loop_counter #(.COUNT(POOL * POOL), .BITS(8)) window (
        .clk(clk),
        .rst(rst),
        .step(shift && last_lane),
        .value(),
        .first(window_first),
        .last(window_last)
    );

    always @(posedge clk) begin
        if (rst) begin
            holding <= 1'b0;
            held_lane <= {LANE_BITS{1'b0}};
            held_channel <= {CHANNEL_BITS{1'b0}};
        end else begin
            if (capture)
                holding <= 1'b1;
            else if (shift && last_lane)
                holding <= 1'b0;
            if (shift) begin
                held_lane <= last_lane ? {LANE_BITS{1'b0}} : held_lane + 1'b1;
                if (!last_lane)
                    held_channel <= held_channel + 1'b1;
                else if (!window_last)
                    held_channel <= held_channel - held_lane;
                else
                    held_channel <= last_channel ? {CHANNEL_BITS{1'b0}} : held_channel + 1'b1;
            end
        end
    end

    wire                         scaled_valid, scaled_first, scaled_last;
    wire [LANE_BITS-1:0]         scaled_lane;
    wire signed [DATA_WIDTH-1:0] scaled;

    requantizer #(
        .DATA_WIDTH(DATA_WIDTH),
        .ACC_WIDTH(ACC_WIDTH),
        .CHANNELS(OUT_CHANNELS),
        .CHANNEL_BITS(CHANNEL_BITS),
        .TAG_WIDTH(LANE_BITS + 2),
        .RELU(RELU)
    ) scaling (
        .clk(clk),
        .rst(rst),
        .load_bias(load && load_memory == BIASES),
        .load_multiplier(load && load_memory == MULTIPLIERS),
        .load_shift(load && load_memory == SHIFTS),
        .load_address(load_address[CHANNEL_BITS-1:0]),
        .load_data(load_data),
        .zero_point(output_zero_point),
        .flow(flow),
        .in_valid(holding),
        .in_sum(held[0 +: ACC_WIDTH]),
        .in_channel(held_channel),
        .in_tag({window_first, window_last, held_lane}),
        .out_valid(scaled_valid),
        .out_data(scaled),
        .out_tag({scaled_first, scaled_last, scaled_lane})
    );

    generate
        if (POOL > 1) begin : pooling
            max_pool #(
                .DATA_WIDTH(DATA_WIDTH),
                .LANES(PES),
                .LANE_BITS(LANE_BITS)
            ) pool (
                .clk(clk),
                .rst(rst),
                .flow(flow),
                .in_valid(scaled_valid),
                .in_data(scaled),
                .in_lane(scaled_lane),
                .in_first(scaled_first),
                .in_last(scaled_last),
                .out_valid(out_valid),
                .out_data(out_data)
            );
        end else begin : direct
            assign out_valid = scaled_valid;
            assign out_data = scaled;
        end
    endgenerate

    assign flow = !out_valid || out_ready;

endmodule
