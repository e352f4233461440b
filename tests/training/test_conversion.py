"""Data sets of other forms, brought into the data form."""

import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.conversion.names import label_name, label_names, screen_name
from training.conversion.polygons import polygon_pixels, turned_corners
from training.conversion.regions import regions
from training.conversion.runs import Runs, runs_of_counts, runs_of_pairs, unpack_counts
from training.membership import draw_division, read_division


def mask_of(runs: Runs, height: int, width: int) -> list[list[int]]:
    mask = np.zeros((height, width), int)
    mask[runs.pixels()] = 1
    return mask.tolist()


def pairs_of(mask: list[list[int]]) -> str:
    """A mask told Kaggle's way, pixel by pixel."""
    flat = [row[column] for column in range(len(mask[0])) for row in mask]
    words = []
    for k, value in enumerate(flat):
        if value and (k == 0 or not flat[k - 1]):
            end = next((j for j in range(k, len(flat)) if not flat[j]), len(flat))
            words += [str(k + 1), str(end - k)]
    return " ".join(words)


def counts_of(mask: list[list[int]]) -> list[int]:
    """A mask told COCO's way, pixel by pixel."""
    counts, last = [0], 0
    for column in range(len(mask[0])):
        for row in mask:
            if row[column] != last:
                counts.append(0)
                last = row[column]
            counts[-1] += 1
    return counts


def packed(counts: list[int]) -> str:
    """COCO's compression of counts."""
    text = ""
    for k, count in enumerate(counts):
        value = count - counts[k - 2] if k > 2 else count
        while True:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            text += chr(48 + bits + (32 if more else 0))
            if not more:
                break
    return text


masks = st.integers(1, 7).flatmap(
    lambda width: st.lists(st.lists(st.integers(0, 1), min_size=width, max_size=width), min_size=1, max_size=7)
)


@given(masks)
def test_run_lengths_of_both_kinds_give_the_mask_back(mask: list[list[int]]) -> None:
    height, width = len(mask), len(mask[0])
    counts = counts_of(mask)
    assert mask_of(runs_of_counts(counts, height, width), height, width) == mask
    assert unpack_counts(packed(counts)) == counts
    if any(map(any, mask)):
        assert mask_of(runs_of_pairs(pairs_of(mask), height, width), height, width) == mask


@given(st.lists(st.integers(0, 10**9), max_size=8))
def test_compressed_counts_of_any_size_come_back(counts: list[int]) -> None:
    assert unpack_counts(packed(counts)) == counts


def test_compressed_counts_as_pycocotools_2_0_writes_them() -> None:
    """Of a mask of 96 x 128 with the rectangles (rows, columns) 10-39, 5-59 and 50-89, 100-127, and its first pixel."""
    mask = np.zeros((96, 128), int)
    mask[10:40, 5:60] = mask[50:90, 100:128] = mask[0, 0] = 1
    text = "01Y?m0iB" + "0" * 107 + "Xi3:^VL" + "0" * 53 + "^N"
    counts = unpack_counts(text)
    assert mask_of(runs_of_counts(counts, 96, 128), 96, 128) == mask.tolist()


def test_columns_come_before_rows() -> None:
    rows, columns = runs_of_pairs("2 3 9 1", 4, 3).pixels()
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == [(1, 0), (2, 0), (3, 0), (0, 2)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no pairs"),
        ("1", "no pairs"),
        ("1 2 3", "no pairs"),
        ("1 -2", "no pairs"),
        ("1.0 2", "no pairs"),
        ("one two", "no pairs"),
        ("\u0661 \u0662", "no pairs"),  # digits, but not ours
        ("0 2", "count from 1"),
        ("1 0", "count from 1"),
        ("12 2", "beyond"),
        ("13 1", "beyond"),
        ("1 99999999999999999999999999", "beyond"),
        ("99999999999999999999999999 1", "beyond"),
        ("1 3 3 2", "overlap"),
        ("5 2 1 2", "overlap"),
        ("5 2 5 2", "overlap"),
    ],
)
def test_bad_pairs_are_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        runs_of_pairs(text, 4, 3)


@pytest.mark.parametrize(("counts", "said"), [([3, 8], "image has 12"), ([], "has 12"), ([13, -1], "negative")])
def test_counts_that_do_not_fill_the_image_are_refused(counts: list[int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        runs_of_counts(counts, 4, 3)


@pytest.mark.parametrize("text", [" ", "p", "P", "PPPPPPPPPPPPPPPPPPPPPP0", "1\n"])
def test_broken_compressed_counts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="compressed counts"):
        unpack_counts(text)


def inside(polygon: list[float], x: float, y: float) -> bool:
    """Whether a ray to the left crosses an odd number of edges."""
    points = list(zip(polygon[::2], polygon[1::2], strict=True))
    odd = False
    for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1], strict=True):
        if (y < y0) != (y < y1) and x0 + (y - y0) / (y1 - y0) * (x1 - x0) <= x:
            odd = not odd
    return odd


@given(st.lists(st.tuples(st.integers(-2, 24), st.integers(-2, 18)), min_size=3, max_size=8))
def test_a_polygon_has_the_pixels_whose_centres_it_holds(points: list[tuple[int, int]]) -> None:
    polygon = [value / 2 for point in points for value in point]  # in half pixels, up to one beyond 11 x 8
    expected = {(r, c) for r in range(8) for c in range(11) if inside(polygon, c + 0.5, r + 0.5)}
    rows, columns = polygon_pixels([polygon], 8, 11)
    found = set(zip(rows.tolist(), columns.tolist(), strict=True))
    assert len(found) == len(rows)
    assert expected <= found
    ends = np.array(points) / 2
    sides = np.concatenate([np.linspace(a, b, 60) for a, b in zip(ends, np.roll(ends, -1, axis=0), strict=True)])
    on = sides.clip(0, [11, 8])  # what leaves the image is at its edge
    away = np.abs(on[:, None] - np.array([(c + 0.5, r + 0.5) for r, c in found])[None]).max(axis=-1) - 0.5
    assert away.min(axis=1).max() <= 1.001  # no part of it is lost, however thin
    more = away[:, [pixel not in expected for pixel in found]]
    assert more.min(axis=0).max(initial=0) <= 1.001  # and nothing is made up


def test_of_a_spot_with_a_thin_tail_nothing_is_lost() -> None:
    spot = np.zeros((20, 220), np.uint8)
    cv2.circle(spot, (10, 10), 4, 1, -1)
    spot[10, 10:214] = 1
    (contour,), _ = cv2.findContours(spot, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    rows, columns = polygon_pixels([contour.ravel().astype(float).tolist()], 20, 220)
    assert columns.max() >= 212
    assert len(regions(rows, columns, "scratch")) == 1  # the tail and the spot hang together


@pytest.mark.parametrize("angle", range(0, 180, 15))
def test_a_hair_is_as_long_as_it_was_drawn(angle: int) -> None:
    polygon = turned_corners((20, 79.9, 120, 0.2), angle)
    (hair,) = regions(*polygon_pixels([polygon], 160, 160), "scratch")
    drawn = max(np.ptp(polygon[::2]), np.ptp(polygon[1::2]))
    assert abs(hair.size_px - drawn) <= 2


def test_a_mask_of_many_spots_is_as_many_defects() -> None:
    mask = np.zeros((40, 60), bool)
    mask[2:5, 2:5] = mask[9, 5:8] = True  # with a gap of 4 px
    mask[20:34, 40] = True
    mask[35, 30:33] = True  # a speck: of the largest
    rows, columns = (at.astype(np.int32) for at in np.nonzero(mask))
    first, second = sorted(regions(rows, columns, "tin_ash"), key=lambda one: one.top)
    assert (first.box, first.area_px) == ((2, 2, 8, 10), 12)
    assert (second.box, second.area_px) == ((30, 20, 41, 36), 14 + 3)


def test_a_thin_neck_thickens_nothing_but_itself() -> None:
    dumbbell = [0, 0, 8, 0, 8, 3.6, 20, 3.6, 20, 0, 28, 0, 28, 8, 20, 8, 20, 3.8, 8, 3.8, 8, 8, 0, 8]
    rows, columns = polygon_pixels([dumbbell], 10, 30)
    (whole,) = regions(rows, columns, "scratch")
    assert whole.box == (0, 0, 28, 8)
    assert 2 * 64 + 12 <= len(rows) <= 2 * 64 + 24


def test_a_box_turns_clockwise_about_its_centre() -> None:
    assert turned_corners((0, 0, 10, 4), 0) == [0, 0, 10, 0, 10, 4, 0, 4]
    assert turned_corners((0, 0, 10, 4), 90) == [7, -3, 7, 7, 3, 7, 3, -3]  # its left upper corner is the right one


def test_a_polygon_that_may_be_cut_has_what_lies_in_the_image() -> None:
    rows, columns = polygon_pixels([[-5, 2, 3, 2, 3, 20, -5, 20]], 8, 11, cut=True)
    assert (len(rows), rows.min(), rows.max(), columns.min(), columns.max()) == (18, 2, 7, 0, 2)


def test_polygons_of_one_annotation_add_up() -> None:
    rows, columns = polygon_pixels([[1, 1, 4, 1, 4, 3, 1, 3], [3, 2, 6, 2, 6, 4, 3, 4]], 8, 11)
    assert len(rows) == 6 + 6 - 1
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (1, 3, 1, 5)


def test_a_polygon_thinner_than_a_pixel_has_its_outline() -> None:
    rows, columns = polygon_pixels([[1.0, 2.6, 9.0, 2.6, 9.0, 2.9]], 8, 11)
    assert rows.tolist() == [2] * 8
    assert columns.tolist() == list(range(1, 9))  # 9.0 is where column 8 ends


@pytest.mark.parametrize(
    ("polygon", "said"),
    [([1, 2, 3, 4], "4 numbers"), ([1, 2, 3, 4, 5, 6, 7], "7 numbers"), ([0, 0, 12.5, 0, 3, 3], "leaves the image")],
)
def test_bad_polygons_are_refused(polygon: list[float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        polygon_pixels([polygon], 8, 11)


@pytest.mark.parametrize(
    ("file_name", "screen"),
    [
        ("a.jpg", "a"),
        ("a.JPEG", "a"),
        ("a.v2", "a.v2"),
        ("IMG 01_jpg.rf.0ab1.jpg", "IMG_01_jpg.rf.0ab1"),
        ("left/b 1.png", "left-b_1"),
        ("left\\b.png", "left-b"),
        ("./a.png", "a"),
        ("müll.png", "m_ll"),
        ("a" * 64 + ".png", "a" * 64),
        ("a" * 65 + ".png", "a" * 55 + "-" + hashlib.sha256(b"a" * 65).hexdigest()[:8]),
    ],
)
def test_names_of_screens(file_name: str, screen: str) -> None:
    assert screen_name(file_name) == screen


@pytest.mark.parametrize("file_name", ["/etc/a.png", "../a.png", "a/../../b.png", "C:\\a.png", "", "....png"])
def test_paths_that_are_no_screen_are_refused(file_name: str) -> None:
    with pytest.raises(ValueError, match=r"no path below|dots alone"):
        screen_name(file_name)


@pytest.mark.parametrize(
    ("original", "label"), [("Tin Ash", "tin_ash"), ("pin-hole", "pin_hole"), (" scratch (long) ", "scratch_long")]
)
def test_labels_are_lower_case_with_underscores(original: str, label: str) -> None:
    assert label_name(original, {}) == label


@pytest.mark.parametrize("original", ["划痕", "1", "--", ""])
def test_what_makes_no_label_is_refused_unless_it_is_renamed(original: str) -> None:
    with pytest.raises(ValueError, match="--rename"):
        label_name(original, {})
    assert label_name(original, {original: "scratch"}) == "scratch"
    with pytest.raises(ValueError, match="--rename"):
        label_name(original, {original: "Scratch"})


def test_a_given_label_that_is_none_is_blamed_itself() -> None:
    with pytest.raises(ValueError, match=r"'1=Pitted Surface' names no label: 'Pitted Surface' is not a-z, 0-9 and _"):
        label_name("1", {"1": "Pitted Surface"})


def test_labels_are_as_long_as_a_bundle_takes_them() -> None:
    assert label_name("S" + "x" * 31, {}) == "s" + "x" * 31
    with pytest.raises(ValueError, match=r"makes no label .*at most 32"):
        label_name("S" + "x" * 32, {})


def test_classes_become_one_label_only_where_that_is_said() -> None:
    with pytest.raises(ValueError, match=r"'Tin ash' and 'tin_ash' both become .*join them by naming both the same"):
        label_names(["Tin ash", "tin_ash"], {})
    assert set(label_names(["dust", "lint"], {"dust": "dirt", "lint": "dirt"}).values()) == {"dirt"}
    with pytest.raises(ValueError, match="no class here"):
        label_names(["dust"], {"dsut": "dirt"})


def test_a_drawn_division_is_by_name_alone() -> None:
    names = [f"s{n:02d}" for n in range(50)]
    rows = draw_division(names, test_share=0.2).rows
    assert sum(row["part"] == "test" for row in rows.values()) == 10
    assert draw_division(names[::-1], test_share=0.2).rows == rows
    assert draw_division(names[:20], test_share=None).rows == draw_division(names[:20], test_share=0.1).rows


@pytest.mark.parametrize(
    ("count", "share", "drawn"), [(4, 0.1, 1), (2, 0.01, 1), (1, 0.1, 0), (4, 0.0, 0), (5, 0.5, 2), (15, 0.1, 2)]
)
def test_a_part_that_is_drawn_has_an_image(count: int, share: float, drawn: int) -> None:
    rows = draw_division([f"s{n:02d}" for n in range(count)], test_share=share).rows
    assert sum(row["part"] == "test" for row in rows.values()) == drawn


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("screen,part\na,train\n", "lacks screen b"),
        ("screen,part\na,train\nb,test\nc,test\n", "names the screen 'c'"),
        ("screen,part\na,train\na.png,test\nb,test\n", "'a' is there twice"),
        ("screen,part\na,train\nb,val\n", "line 3: unknown part 'val'"),
        ("screen,part\n\na,train\n\n\nb,val\n", "line 6: unknown part 'val'"),
        ("screen,fold\na,0\nb,first\n", "line 3: the fold 'first'"),
        ("screen,part\na\nb,test\n", "line 2: fewer values"),
        ("screen,part\na,train,x\nb,test\n", "line 2: more values"),
        ("name,part\na,train\nb,test\n", "needs the columns"),
        ("", "needs the columns"),
        ("screen,part,fold\na,train,0\nb,test,1\n", "columns part and fold"),
        ("screen;part\na;train\nb;test\n", "';' between its columns"),
    ],
)
def test_tables_of_parts_that_do_not_fit_are_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "parts.csv").write_text(text)
    with pytest.raises(ValueError, match=said):
        read_division(tmp_path / "parts.csv", ["a", "b"])


def test_a_table_of_parts_keeps_its_other_columns(tmp_path: Path) -> None:
    (tmp_path / "parts.csv").write_text("screen,phone,fold\nb.png,P2,1\na,P1,0\n")
    division = read_division(tmp_path / "parts.csv", ["a", "b"])
    assert division.table == "folds.csv"
    assert division.rows["b"] == {"screen": "b", "phone": "P2", "fold": "1"}
