"""The page that runs a model in a browser and compares every code there, its server, and its use on a phone.

`server.py` hands out the page in `page/`, ONNX Runtime Web (`web_runtime.py`), the model and its golden vectors, and
takes the report that the page posts (`verification.py`), in the form that devices use (`targets/report.py`). It needs
the extra `browser`; nothing is loaded here, so that a device without it can still ask what is set up.
"""
