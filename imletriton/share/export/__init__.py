"""A model as an ONNX file or as a web page."""
