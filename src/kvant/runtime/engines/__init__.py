"""The engines that run artifacts: one module says what each runs and can do; entry points `kvant.engines` find them."""
