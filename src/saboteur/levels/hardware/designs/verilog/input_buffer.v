// Two banks of SIZE activations: one is filled by the stream while the other is read.
//
// A bank is ready when it is full. The reader moves on to the other bank when it has issued the last address of an
// image (image_issued), and the bank is free when that address has been read (release_bank).

module input_buffer #(
    parameter DATA_WIDTH = 8,
    parameter SIZE = 64,
    parameter ADDRESS_BITS = 6
) (
    input  wire                         clk,
    input  wire                         rst,
    input  wire                         in_valid,
    output wire                         in_ready,
    input  wire signed [DATA_WIDTH-1:0] in_data,
    output wire                         image_ready,
    input  wire                         image_issued,
    input  wire                         enable,
    input  wire [ADDRESS_BITS-1:0]      address,
    input  wire                         release_bank,
    output reg  signed [DATA_WIDTH-1:0] value
);

    reg signed [DATA_WIDTH-1:0] memory [0:2*SIZE-1];

    reg [1:0]              full;
    reg                    write_bank;  // being filled
    reg                    issue_bank;  // addresses are issued for it
    reg                    read_bank;   // the address that is at the memory belongs to it
    reg [ADDRESS_BITS-1:0] fill;

    wire                  write = in_valid && in_ready;
    wire                  last_write = fill == SIZE - 1;
    wire [ADDRESS_BITS:0] write_address = write_bank ? fill + SIZE : fill;
    wire [ADDRESS_BITS:0] read_address = read_bank ? address + SIZE : address;

    assign in_ready = !full[write_bank];
    assign image_ready = full[issue_bank];

    always @(posedge clk) begin
        if (write)
            memory[write_address] <= in_data;
    end

    always @(posedge clk) begin
        if (rst) begin
            full <= 2'b00;
            write_bank <= 1'b0;
            issue_bank <= 1'b0;
            read_bank <= 1'b0;
            fill <= {ADDRESS_BITS{1'b0}};
            value <= {DATA_WIDTH{1'b0}};
        end else begin
            if (write) begin
                fill <= last_write ? {ADDRESS_BITS{1'b0}} : fill + 1'b1;
                if (last_write) begin
                    full[write_bank] <= 1'b1;
                    write_bank <= !write_bank;
                end
            end
            if (image_issued)
                issue_bank <= !issue_bank;
            if (enable) begin
                read_bank <= issue_bank;
                value <= memory[read_address];
                if (release_bank)
                    full[read_bank] <= 1'b0;
            end
        end
    end

endmodule
