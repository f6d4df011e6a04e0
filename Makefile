# `make demo` and `make test` work on a machine with Python 3.11+ and make; the second time without reinstalling.
PYTHON ?= python3
VENV ?= .venv
STAMP := $(VENV)/.installed
PYTEST := -q -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-oldest test-settings test-gpu test-docs gpu-check test-upstream lint benchmark clean

$(STAMP): pyproject.toml setup.py
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet -e '.[test]'
	touch $@

demo: $(STAMP)
	$(VENV)/bin/sharp-unlearn demo --overwrite

test: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	HF_HUB_OFFLINE=1 $(VENV)/bin/pytest $(PYTEST)

# The suite with the oldest supported versions of the main dependencies, in an environment of its own.
OLDEST := $(VENV)-oldest

$(OLDEST)/.installed: pyproject.toml setup.py tests/oldest.txt
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --upgrade pip
	$(OLDEST)/bin/python -m pip install --quiet -e '.[test]' -c tests/oldest.txt
	touch $@

test-oldest: $(OLDEST)/.installed
	HF_HUB_OFFLINE=1 $(OLDEST)/bin/pytest $(PYTEST)

# The suite where sums are rounded otherwise: other instruction sets, other numbers of threads. Each set and each number
# comes once, because what a claim could depend on is either. Workers with more threads than cores must sleep while they
# wait: where they spin, the tests of the demo have run into the time limit.
test-settings: export OMP_WAIT_POLICY = PASSIVE
test-settings: PYTEST += --timeout 1800
test-settings: $(STAMP)
	TEST_THREADS=2 ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 HF_HUB_OFFLINE=1 $(VENV)/bin/pytest $(PYTEST)
	TEST_THREADS=4 ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 HF_HUB_OFFLINE=1 $(VENV)/bin/pytest $(PYTEST)
	TEST_THREADS=1 HF_HUB_OFFLINE=1 $(VENV)/bin/pytest $(PYTEST)

# The kernel and optimizer tests on a GPU instead of Triton's interpreter.
test-gpu: $(STAMP)
	GPU_TESTS=1 HF_HUB_OFFLINE=1 $(VENV)/bin/pytest -q tests/kernels \
		tests/step/test_optim.py tests/step/test_optim_staging.py

# One command that proves the kernels on a GPU: correctness, speed, whole steps, in 8 minutes (CONTRIBUTING.md).
gpu-check: $(STAMP)
	$(VENV)/bin/python benchmarks/gpu_check.py

# Every block of README and docs as it stands, in one folder, in full size: about ten minutes; compares what they show.
test-docs: $(STAMP)
	rm -rf build/docs
	HF_HUB_OFFLINE=1 $(VENV)/bin/python tests/support/docs.py build/docs

# transformers' own Trainer tests on UnlearningTrainer; TRANSFORMERS is a checkout of theirs (tests/upstream/README.md).
$(VENV)/.upstream: $(STAMP) tests/upstream/requirements.txt
	$(VENV)/bin/python -m pip install --quiet -r tests/upstream/requirements.txt
	touch $@

test-upstream: $(VENV)/.upstream
	HF_HUB_OFFLINE=1 $(VENV)/bin/python tests/upstream/compare.py "$(TRANSFORMERS)"

lint: $(STAMP)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

benchmark: $(STAMP)
	$(VENV)/bin/sharp-unlearn benchmark

clean:
	rm -rf $(VENV) $(OLDEST) build dist *.egg-info demo_output
