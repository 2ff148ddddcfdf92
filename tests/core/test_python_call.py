import pytest

from smallvit.core.python_call import in_python


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "/a exists: continue it with --resume /a, replace it with --overwrite, or choose "
            "another --out",
            '/a exists: continue it with resume="/a", replace it with overwrite=True, or choose '
            "another out=...",
        ),
        ("give --dataset NAME or --data PATH", "give dataset=NAME or data=PATH"),
        ("lower --optim.weight-decay", 'lower optim={"weight_decay": ...}'),
        ("use --batch-size 64 at most", "use batch_size=64 at most"),
        ("leave --out and --overwrite out", "leave out=... and overwrite=True out"),
        ("--init timm:vit is no such", 'init="timm:vit" is no such'),
        ("`smallvit bench --robust` does", "`smallvit bench --robust` does"),
        ("a file a--b.png", "a file a--b.png"),
    ],
)
def test_messages_name_arguments_in_place_of_options(message, expected):
    assert in_python(message) == expected
