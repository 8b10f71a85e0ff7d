"""The pipeline stage: prepare, train, evaluate; what is finished is skipped."""

from typing import Any

from mtrec_ray.data.prepare import Say
from mtrec_ray.schema import Project
from mtrec_ray.stages.evaluate import run_evaluate
from mtrec_ray.stages.prepare import run_prepare
from mtrec_ray.stages.train import run_train


def run_pipeline(project: Project, storage_path: str, say: Say) -> dict[str, Any]:
    """Run the stages in order; returns the evaluation."""
    run_prepare(project, storage_path, say)
    run_train(project, storage_path, say)
    return run_evaluate(project, storage_path, say)
