"""The shipper: ONNX, parity, measurement."""
