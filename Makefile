# make demo: set up, then train and attack a small network on real digits, in a few minutes on a CPU.
# make test: set up, then run all tests.
# make soak: the long tests, and ten times the cases of property tests.

export PYTHON ?= python3
# The tests start hundreds of processes, each of which would compile every module of fastpeer anew.
unexport PYTHONDONTWRITEBYTECODE
# For the processes that tests start, too: next to one another, threads wait for each other.
TESTS := OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n auto --maxprocesses 8 --dist loadgroup
FASTPEER := .venv/bin/fastpeer
PY := .venv/bin/python

.PHONY: demo test soak lint format clean

demo: .venv/ready
	$(FASTPEER) prep --dataset digits --force
	$(FASTPEER) train demo --force
	$(FASTPEER) train demo --method natural --out runs/demo-natural --force
	$(FASTPEER) eval runs/demo runs/demo-natural --attacks clean,fgsm,pgd20

test: .venv/ready
	$(TESTS)

soak: .venv/ready
	$(TESTS) -m soak
	$(TESTS) -m hypothesis --hypothesis-profile soak

lint: .venv/ready
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) tools/typecheck.py

format: .venv/ready
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:
	rm -rf .venv build *.egg-info

.venv/ready: pyproject.toml constraints.txt tools/setup.sh
	tools/setup.sh
