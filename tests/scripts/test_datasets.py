"""The real data is read exactly: cents, rows, and errors that name the place."""

from pathlib import Path

import pytest

from scripts.localnet.cut_sample import cut
from scripts.localnet.datasets import DataError, read_claims, read_openings, read_transfers, to_cents

DATA = Path(__file__).parents[2] / "data"


@pytest.mark.parametrize(
    ("text", "cents"),
    [("163.3", 16330), ("0.005", 1), ("0.004999", 0), ("688.83085", 68883), ("344560.225", 34456023)],
)
def test_amounts_become_cents_with_halves_rounded_up(text: str, cents: int) -> None:
    assert to_cents(text) == cents


@pytest.mark.parametrize("text", ["", "ten", "nan", "inf", "1,5"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"decimal|finite"):
        to_cents(text)


def test_the_sample_in_the_repository_is_large_enough_and_complete() -> None:
    transfers = read_transfers(DATA / "payments_amlsim" / "transactions.csv")
    openings = read_openings(DATA / "payments_amlsim" / "nodes.csv")
    claims = read_claims(DATA / "claims_australia" / "claims.csv")
    assert len(transfers) >= 5_000
    assert len(claims) >= 1_000
    assert {node for transfer in transfers for node in (transfer.source, transfer.target)} == set(openings)
    assert all(claim.cents > 0 and claim.accident_day <= claim.report_day <= claim.final_day for claim in claims)
    assert transfers[0].cents == 16330
    assert claims[0].cents == 8775


def test_a_sample_cut_again_is_the_same(tmp_path: Path) -> None:
    source = tmp_path / "full"
    for folder, names in {
        "payments_amlsim": ("transactions.csv", "nodes.csv", "LICENSE"),
        "claims_australia_1989_1999": ("ausautoBI8999.csv", "DESCRIPTION"),
    }.items():
        (source / folder).mkdir(parents=True)
        for name in names:
            (source / folder / name).write_text(f"header of {name}\r\n")
    (source / "payments_amlsim" / "transactions.csv").write_bytes(b"a,b,value,time\r\n1,2,3.0,1\r\n2,4,1.0,1\r\n")
    (source / "payments_amlsim" / "nodes.csv").write_bytes(b"nodeid,x\r\n1,a\r\n2,b\r\n3,c\r\n4,d\r\n")
    assert cut(source, tmp_path / "cut") == {"transactions.csv": 2, "nodes.csv": 3, "claims.csv": 0}
    assert (tmp_path / "cut" / "payments_amlsim" / "nodes.csv").read_bytes() == (
        b"nodeid,x\r\n1,a\r\n2,b\r\n4,d\r\n"
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("sourceNodeId,targetNodeId,value,time\r\n1,2,x,1\r\n", "row 1: 'x' is not a decimal number"),
        ("sourceNodeId,targetNodeId,value,time\r\n1,2,1.0,1\r\n1,2\r\n", "row 2: too few columns"),
        ("sourceNodeId,targetNodeId,value,time\r\n1,2.5,1.0,1\r\n", "row 1: '2.5' is not a whole number"),
        ("source,target\r\n", "header lacks sourceNodeId"),
        ("sourceNodeId,targetNodeId,value,time\r\n1,2,é,1\r\n", "not ASCII"),
    ],
)
def test_a_broken_file_is_named_with_its_row(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "transactions.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=str(path)) as caught:
        read_transfers(path)
    assert said in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_claims(tmp_path / "claims.csv")
