# Formatting, lint and types.
check:
    uv run ruff format --check
    uv run ruff check
    uv run mypy

# All but the tests that start Ray.
test:
    uv run pytest -m "not ray and not slow"

test-ray:
    uv run pytest -n 0 -m ray

# Lines of code by file, largest first.
size:
    @wc -l $(git ls-files 'raycnn/*.py') | sort -rn

# Train a job: just job quickstart train.epochs=3
job name *changes:
    uv run raycnn train jobs/{{name}}.yaml {{changes}}
