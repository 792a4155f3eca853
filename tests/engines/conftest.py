"""vLLM has an environment of its own; its file is collected there only, by the Python that tests/with_vllm starts."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("vllm") else ["test_vllm.py"]
