// Scales sums to DATA_WIDTH bits: clamp(zero_point + round((sum + bias) * multiplier * 2^-(31 + shift))), rounded
// once, to nearest, halves away from zero; with RELU, not below the zero point. Bit for bit
// saboteur.workloads.int8.requantize. multiplier is a 32-bit and shift a 5-bit number, one for each channel.
//
// Five stages: parameters read, bias added, product, round and shift, zero point and clamp. All wait when flow is 0.
// A tag travels along.

module requantizer #(
    parameter DATA_WIDTH = 8,
    parameter ACC_WIDTH = 32,
    parameter CHANNELS = 8,
    parameter CHANNEL_BITS = 3,
    parameter TAG_WIDTH = 5,
    parameter RELU = 1
) (
    input  wire                         clk,
    input  wire                         rst,
    input  wire                         load_bias,
    input  wire                         load_multiplier,
    input  wire                         load_shift,
    input  wire [CHANNEL_BITS-1:0]      load_address,
    input  wire [31:0]                  load_data,
    input  wire signed [DATA_WIDTH-1:0] zero_point,
    input  wire                         flow,
    input  wire                         in_valid,
    input  wire signed [ACC_WIDTH-1:0]  in_sum,
    input  wire [CHANNEL_BITS-1:0]      in_channel,
    input  wire [TAG_WIDTH-1:0]         in_tag,
    output reg                          out_valid,
    output reg  signed [DATA_WIDTH-1:0] out_data,
    output wire [TAG_WIDTH-1:0]         out_tag
);

    localparam PRODUCT_WIDTH = ACC_WIDTH + 32;
    // The shift is by 31 at least.
    localparam ROUNDED_WIDTH = PRODUCT_WIDTH - 31;
    localparam signed [ROUNDED_WIDTH:0] HIGHEST = (1 << (DATA_WIDTH - 1)) - 1;
    localparam signed [ROUNDED_WIDTH:0] LOWEST = -(1 << (DATA_WIDTH - 1));

    reg signed [31:0] biases [0:CHANNELS-1];
    reg signed [31:0] multipliers [0:CHANNELS-1];
    reg [4:0]         shifts [0:CHANNELS-1];

    always @(posedge clk) begin
        if (load_bias)
            biases[load_address] <= load_data;
        if (load_multiplier)
            multipliers[load_address] <= load_data;
        if (load_shift)
            shifts[load_address] <= load_data[4:0];
    end

    reg                            read_valid, biased_valid, product_valid, rounded_valid;
    reg [TAG_WIDTH-1:0]            read_tag, biased_tag, product_tag, rounded_tag, tag;
    reg signed [ACC_WIDTH-1:0]     sum, biased;
    reg signed [31:0]              bias, multiplier, biased_multiplier;
    reg [4:0]                      shift, biased_shift, product_shift;
    reg signed [PRODUCT_WIDTH-1:0] product;
    reg signed [ROUNDED_WIDTH-1:0] rounded;

    // (product + 2^(n - 1) - (product < 0)) >> n, with n = 31 + shift
    wire        [PRODUCT_WIDTH-1:0] half = {{PRODUCT_WIDTH-31{1'b0}}, 1'b1, 30'b0} << product_shift;
    wire signed [PRODUCT_WIDTH-1:0] nudged = product + $signed(half) + $signed({PRODUCT_WIDTH{product[PRODUCT_WIDTH-1]}});
    wire signed [ROUNDED_WIDTH-1:0] by_31 = nudged[PRODUCT_WIDTH-1:31];

    wire signed [ROUNDED_WIDTH:0]  shifted_up = rounded + zero_point;
    wire signed [DATA_WIDTH-1:0]   clamped = shifted_up > HIGHEST ? HIGHEST[DATA_WIDTH-1:0]
                                           : shifted_up < LOWEST ? LOWEST[DATA_WIDTH-1:0]
                                           : shifted_up[DATA_WIDTH-1:0];

    assign out_tag = tag;

    always @(posedge clk) begin
        if (rst) begin
            read_valid <= 1'b0;
            read_tag <= {TAG_WIDTH{1'b0}};
            sum <= {ACC_WIDTH{1'b0}};
            bias <= 32'b0;
            multiplier <= 32'b0;
            shift <= 5'b0;
            biased_valid <= 1'b0;
            biased_tag <= {TAG_WIDTH{1'b0}};
            biased <= {ACC_WIDTH{1'b0}};
            biased_multiplier <= 32'b0;
            biased_shift <= 5'b0;
            product_valid <= 1'b0;
            product_tag <= {TAG_WIDTH{1'b0}};
            product <= {PRODUCT_WIDTH{1'b0}};
            product_shift <= 5'b0;
            rounded_valid <= 1'b0;
            rounded_tag <= {TAG_WIDTH{1'b0}};
            rounded <= {ROUNDED_WIDTH{1'b0}};
            out_valid <= 1'b0;
            tag <= {TAG_WIDTH{1'b0}};
            out_data <= {DATA_WIDTH{1'b0}};
        end else if (flow) begin
            read_valid <= in_valid;
            read_tag <= in_tag;
            sum <= in_sum;
            bias <= biases[in_channel];
            multiplier <= multipliers[in_channel];
            shift <= shifts[in_channel];

            biased_valid <= read_valid;
            biased_tag <= read_tag;
            biased <= sum + bias;
            biased_multiplier <= multiplier;
            biased_shift <= shift;

            product_valid <= biased_valid;
            product_tag <= biased_tag;
            product <= biased * biased_multiplier;
            product_shift <= biased_shift;

            rounded_valid <= product_valid;
            rounded_tag <= product_tag;
            rounded <= by_31 >>> product_shift;

            out_valid <= rounded_valid;
            tag <= rounded_tag;
            out_data <= RELU != 0 && clamped < zero_point ? zero_point : clamped;
        end
    end

endmodule
