"""Names in an exported ONNX file that its writer and its readers must agree on."""

METADATA_KEY = "qil_deploy"
"""The metadata property that holds one JSON object about the model."""

METADATA_SCHEMA = 1
"""Version of that object; readers refuse others."""

INPUT_NAME = "image"
"""The graph's input: uint8 images, or normalised float32 ones, [batch, C, H, W]."""

OUTPUT_NAME = "logits"
"""The graph's output where it has one; several have the names of the network's (`NetworkOutput`)."""
