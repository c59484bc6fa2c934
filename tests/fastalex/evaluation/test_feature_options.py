"""Options of an extraction that are refused."""

import pytest

from fastalex.errors import ConfigurationError
from fastalex.evaluation.feature_options import FeaturesOptions, resolve


def test_what_is_refused(runs, prepared, tmp_path):
    for names, options, message in (
        (("conv9",), {}, "no activation named conv9; .* conv1.conv, conv1.pool"),
        ((), {}, "name at least one activation"),
        (("fc7",), {"split": "test"}, "no images in split 'test'"),
        (("fc7",), {"batch_size": 0}, "--batch-size .* 0"),
        (("fc7",), {"run": tmp_path / "nothing"}, "no such run folder"),
    ):
        asked = {"run": runs[0], "data": prepared, "output": tmp_path / "features", **options}
        with pytest.raises(ConfigurationError, match=message):
            resolve(FeaturesOptions(names=names, **asked))
