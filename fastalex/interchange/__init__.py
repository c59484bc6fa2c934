"""Networks in the formats of other programs; one file per format.

``exporting`` writes a trained network: ``onnx_export`` as an ONNX graph, ``exported_program`` as a program of
``torch.export``, ``torchvision_export`` as weights by torchvision's names, in torchvision's and in timm's layout.
``preprocessing_module`` says what a network expects of its images: as operators in the file, or as JSON beside it.
"""
