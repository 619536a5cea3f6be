module loop(input a, input b, output y);
  wire p, q; assign p = ~(a & q); assign q = ~(b & p); assign y = p;
endmodule
