// Processing element of a layer engine: weight memory, multiplier, accumulator, held sum.
//
// Three stages: the weight is read; its product with the operand is formed; the product is added to the sum (first:
// begins it). A finished sum is captured, then shifted out through the PEs of lower number.

module layer_pe #(
    parameter DATA_WIDTH = 8,
    parameter ACC_WIDTH = 32,
    parameter DEPTH = 9,
    parameter ADDRESS_BITS = 4
) (
    input  wire                         clk,
    input  wire                         rst,
    input  wire                         load,
    input  wire [ADDRESS_BITS-1:0]      load_address,
    input  wire signed [DATA_WIDTH-1:0] load_data,
    input  wire                         enable,
    input  wire [ADDRESS_BITS-1:0]      weight_address,
    input  wire signed [DATA_WIDTH:0]   operand,
    input  wire                         accumulate,
    input  wire                         first,
    input  wire                         capture,
    input  wire                         shift,
    input  wire signed [ACC_WIDTH-1:0]  held_in,
    output reg  signed [ACC_WIDTH-1:0]  held
);

    reg signed [DATA_WIDTH-1:0] weights [0:DEPTH-1];
    reg signed [DATA_WIDTH-1:0] weight;
    reg signed [2*DATA_WIDTH:0] product;
    reg signed [ACC_WIDTH-1:0]  acc;

    wire signed [ACC_WIDTH-1:0] base = first ? {ACC_WIDTH{1'b0}} : acc;

    always @(posedge clk) begin
        if (load)
            weights[load_address] <= load_data;
    end

    always @(posedge clk) begin
        if (rst) begin
            weight <= {DATA_WIDTH{1'b0}};
            product <= {2*DATA_WIDTH+1{1'b0}};
            acc <= {ACC_WIDTH{1'b0}};
            held <= {ACC_WIDTH{1'b0}};
        end else begin
            if (enable) begin
                weight <= weights[weight_address];
                product <= weight * operand;
                if (accumulate)
                    acc <= base + product;
            end
            if (capture)
                held <= acc;
            else if (shift)
                held <= held_in;
        end
    end

endmodule
