"""The gradient study: record vectors while training as sketches; read, fit, judge, draw and replay them."""
