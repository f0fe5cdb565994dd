"""What a cut from file to file leaves beside the weights: card, record and plan, as `prune` does, with nothing measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from secateur.loading import load_config
from secateur.plan import PruningPlan
from secateur.report.card import inherited_metadata, model_card
from secateur.report.record import BY_HAND, config_sha256, run_record
from secateur.surgery.files import CutReport
from secateur.surgery.folding import folds_of
from secateur.values import finite

__all__ = ["about_cut"]


def about_cut(
    report: CutReport,
    source: str,
    folder: Path,
    *,
    command: Sequence[str],
    plan: PruningPlan | None = None,
    left_undone: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> dict[str, str]:
    """The name of each file → its text; the plan only where none was given, as that is kept by the cut itself.

    Args:
        report: what is cut.
        source: the dense model's hub id or directory, as the user gave it.
        folder: the directory with its files.
        command: the command line.
        plan: by which it is cut; None if the layers were named.
        left_undone: who changes weights before the cut otherwise than a cut from file to file does.
        revision: the branch, tag or commit asked for.
        trust_remote_code: run code that comes with the model.
    """
    by_hand = PruningPlan(num_layers=report.num_layers, order=report.dropped, method=BY_HAND)
    chosen = plan or by_hand
    data = chosen.provenance.get("data")
    sizes = {
        "dense": {"num_layers": report.num_layers, "size_bytes": report.num_bytes + report.removed_bytes},
        "pruned": {"num_layers": report.num_layers - len(report.dropped), "size_bytes": report.num_bytes},
    }
    record = run_record(
        command=command,
        model={
            "id": source,
            "revision": folder.name if folder.parent.name == "snapshots" else revision,  # the hub's cache: the commit
            "config_sha256": config_sha256(load_config(folder, trust_remote_code=trust_remote_code)),
            "num_layers": report.num_layers,
            "num_parameters": None,
        },
        method={"name": chosen.method or BY_HAND, "options": chosen.options},
        data=data if isinstance(data, Mapping) and isinstance(data.get("spec"), str) else None,
        dropped=report.dropped,
        scores=chosen.scores,
        preparation=_preparation(chosen, report, left_undone),
        metrics=sizes,
    )
    files = {
        "README.md": model_card(record, source, inherited=inherited_metadata(folder)),
        "secateur/record.json": _json(record),
    }
    return files if plan else files | {"secateur/plan.json": _json(by_hand.as_json())}


def _preparation(plan: PruningPlan, report: CutReport, left_undone: str | None) -> dict[str, Any] | None:
    """What became of the weights of the layers that went, and what is usually done to them and was not."""
    done: dict[str, Any] = {} if left_undone is None else {"left_undone": left_undone}
    if report.num_folded and "folds" in plan.provenance:
        done["folds"] = [{"layers": list(each.layers), "into": each.into} for each in folds_of(plan)]
    elif report.num_folded:
        done["merge"] = [{"layer": layer, "into": into} for layer, into in sorted(plan.merges.items())]
    return done or None


def _json(value: Any) -> str:
    return json.dumps(finite(value), indent=2, ensure_ascii=False) + "\n"
