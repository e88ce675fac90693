"""Where every run begins: the model is loaded, the original traced, coupled, and judged on labelled data."""

from __future__ import annotations

from pathlib import Path

from onnxprune.clock import Clock
from onnxprune.graph.inputs import as_run, specs
from onnxprune.graph.model import check_output, load
from onnxprune.options import Options
from onnxprune.study import Study
from onnxprune.subject import DataSource, ModelLike, coupled, opened, processors
from onnxprune.task import EvaluationSource, Task, opened_task

__all__ = ["opened_study"]


def opened_study(
    model: ModelLike,
    options: Options,
    where: DataSource,
    labelled: EvaluationSource,
    providers: tuple[str, ...],
    clock: Clock,
    *,
    approximate: bool,
    jobs: int | None = None,
    output: Path | None = None,
    in_place: bool = False,
) -> tuple[Study, Task | None]:
    """Returns a model under study, and how well it does on labelled data, None where there are none.

    Args:
        model: path, `onnx.ModelProto`, `onnx_ir.Model` or `gs.Graph`.
        options: how to cut it.
        where: where calibration data are; they are opened when something first asks for them.
        labelled: where labelled data are.
        providers: onnxruntime's names of execution providers.
        clock: of the run.
        approximate: open axes that cannot be cut exactly.
        jobs: measurements at a time; None: one for each processor.
        output: where the result will be written, if that is known.
        in_place: the output may be the input.

    Raises:
        OnnxPruneError: see `onnxprune.errors` for the tree.
    """
    with clock.stage("load"):
        source = load(model)
        if output is not None:
            check_output(output, source, in_place)
    coupling = coupled(source, approximate, options.seed, providers, clock, refits=options.mode != "none")
    inputs = as_run(specs(source.model), coupling.trace.feeds)
    task = opened_task(source, inputs, labelled, options.seed, providers, clock)
    study = Study(
        source,
        coupling,
        options,
        providers,
        clock,
        lambda: opened(source, coupling, where, options.samples, options.seed),
        jobs=jobs or processors(),
        name=output.name if output is not None else "model.onnx",
    )
    return study, task
