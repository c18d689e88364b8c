"""Drawn faces whose attributes are known and whose corruptions are planted, and folders of pictures."""

import io
import json
import sys
from importlib.resources import files

import numpy as np
import pytest
import torch

import gan_influence as gi
from conftest import optional

dicebear, resvg_py, styles, pil = (optional(name) for name in ("dicebear", "resvg_py", "dicebear_styles", "PIL.Image"))


def skipped_unless_here(*packages):
    for package in packages or (dicebear, resvg_py, styles, pil):
        assert package.__name__  # a package that is not installed has none, which skips the test


def faces(train: int = 12, valid: int = 0, test: int = 0, **options):
    skipped_unless_here()
    return gi.data.faces(train, valid, test, **options)


def column(data, name: str, part: str = "train") -> np.ndarray:
    return getattr(data.labels, part)[:, [*data.attributes].index(name)].numpy()


def test_faces_are_scaled_labelled_and_the_same_again():
    one, again, other = faces(12, 3, 2, seed=4), faces(12, 3, 2, seed=4, dtype=torch.float64), faces(12, 3, 2, seed=5)
    assert [part.shape for part in one[:3]] == [(n, 3, 32, 32) for n in (12, 3, 2)] and one.train.dtype == torch.float32
    assert [labels.shape for labels in one.labels] == [(n, len(one.attributes)) for n in (12, 3, 2)] and one.labels.train.dtype == torch.int64
    assert -1 <= one.train.min() < 0 and one.train.max() == 1 and again.train.dtype == torch.float64
    assert torch.allclose(one.train.double(), again.train, atol=1e-6)
    assert torch.equal(one.labels.test, again.labels.test) and not torch.equal(one.train, other.train)
    one.train.zero_()
    assert torch.allclose(faces(12, 3, 2, seed=4).train.double(), again.train, atol=1e-6)  # what is kept for a second call is nobody's to write to


def test_parts_are_disjoint_and_do_not_change_with_each_others_size():
    one, other = faces(12, 3, 2), faces(9, 4, 2, plant={"inverted": 0.2})
    assert torch.equal(one.train[:9][other.planted == "none"], other.train[other.planted == "none"]) and torch.equal(one.test, other.test)
    assert torch.equal(one.valid, other.valid[:3]) and torch.equal(one.labels.valid, other.labels.valid[:3])
    every = torch.cat(one[:3]).flatten(1)
    assert len(every.unique(dim=0)) == len(every) == 17


def test_a_share_changes_its_own_attribute_alone_in_labels_and_pixels():
    without, with_ = faces(8, shares={"glasses": 0}), faces(8, shares={"glasses": 1})
    assert (column(without, "glasses") == 0).all() and (column(without, "glasses colour") == -1).all()
    assert (column(with_, "glasses") > 0).all() and (column(with_, "glasses colour") >= 0).all()
    same = [i for i, name in enumerate(with_.attributes) if not name.startswith("glasses")]
    assert torch.equal(without.labels.train[:, same], with_.labels.train[:, same])
    changed = (without.train != with_.train).any(1)
    assert changed.flatten(1).any(1).all()
    changed[:, 8:18, 4:28] = False  # where Pixel Art puts glasses
    assert not changed.any()


def test_labels_are_what_dicebear_draws_under_them():
    data = faces(12, shares={"hat": 0.5, "glasses": 0.5, "beard": 0.5, "accessories": 0.5})
    style = dicebear.Style(json.loads((files("dicebear_styles") / "pixel-art.json").read_text("utf-8")))
    for face, labels in zip(data.train, data.labels.train.tolist()):
        options = {"size": 32, "seed": "any", "backgroundColor": "#ffffff"}
        for (name, values), label in zip(data.attributes.items(), labels):
            if name.endswith(" colour"):
                options |= {f"{name.removesuffix(' colour')}Color": values[label]} if label >= 0 else {}
            else:
                options |= {f"{name}Probability": 100, f"{name}Variant": values[label]} if label else {f"{name}Probability": 0}
        png = resvg_py.svg_to_bytes(svg_string=str(dicebear.Avatar(style, options)), skip_system_fonts=True)
        drawn = np.asarray(pil.open(io.BytesIO(png)).convert("RGB")).transpose(2, 0, 1)
        assert np.array_equal(drawn, ((face.numpy() + 1) * 127.5).round())


def test_shares_are_honoured():
    data = faces(200, size=16, shares={"glasses": 0.3, "hat": 0, "hair": {"none": 0.2, "long": 0.6}, "skin colour": {"#ffdbac": 0.5, "#8d5524": 0.5}})
    hair = np.array([name.rstrip("0123456789") for name in data.attributes["hair"]])[column(data, "hair")]
    skin = np.array(data.attributes["skin colour"])[column(data, "skin colour")]
    found = [np.mean(what) for what in (column(data, "glasses") > 0, column(data, "hat") > 0, hair == "none", hair == "long", hair == "short",
                                        skin == "#ffdbac", skin == "#8d5524")]
    expected = np.array([0.3, 0, 0.2, 0.6, 0.2, 0.5, 0.5])
    assert (np.abs(found - expected) <= 3 * np.sqrt(expected * (1 - expected) / 200)).all()
    assert len(np.unique(column(data, "hair"))) > 30  # a share of several values falls on all of them


def test_another_style_has_attributes_and_planted_strangers_of_its_own():
    data = faces(12, 3, style="open-peeps", shares={"mask": 0, "accessories": 0.5, "skin colour": {"#ffdbb4": 1}}, plant={"another style": 0.25})
    own = data.planted == "none"
    assert set(data.attributes) >= {"mask", "facialHair", "head", "skin colour"} and (column(data, "mask")[own] == 0).all()
    assert 0 < (column(data, "accessories")[own] > 0).mean() < 1 and (data.labels.train[~own] == -1).all() and (~own).sum() == 3
    grey = (data.train.amax(1) - data.train.amin(1)).flatten(1).amax(1) < 0.02
    assert (grey.numpy() == ~own).all()  # Lorelei is drawn in black and white
    assert not torch.equal(data.train[own][0], faces(12).train[own][0])


def test_probabilities_without_a_word_are_the_styles():
    skipped_unless_here()
    style = gi.data._artist("pixel-art")[0].components()
    assert np.allclose(gi.data._chances("hat", ("none", "a", "b"), style["hat"], {}), [0.95, 0.025, 0.025])
    assert np.allclose(gi.data._chances("hat", ("none", "a", "b"), style["hat"], {"a": 0.01}), [0.95, 0.01, 0.04])
    assert np.allclose(gi.data._chances("hat", ("none", "a", "b"), style["hat"], 0.5), [0.5, 0.25, 0.25])
    assert np.allclose(gi.data._chances("hair", ("none", "a", "b"), style["hair"], {}), [0, 0.5, 0.5])
    assert np.allclose(gi.data._chances("skin colour", ("x1", "x2", "y"), None, {"x": 0.5}), [0.25, 0.25, 0.5])


def test_what_is_planted_is_what_it_is_called():
    clean, data = faces(40), faces(40, plant={"noise": 0.1, "inverted": 0.15, "another style": 0.05, "duplicate": 0.2})
    where = {kind: np.flatnonzero(data.planted == kind) for kind in ("none", *gi.data.PLANTED)}
    assert {kind: len(rows) for kind, rows in where.items()} == {"none": 20, "noise": 4, "inverted": 6, "another style": 2, "duplicate": 8}
    assert (clean.planted == "none").all() and torch.equal(data.train[where["none"]], clean.train[where["none"]])
    kept = np.concatenate([where["none"], where["noise"], where["inverted"]])
    assert torch.equal(data.labels.train[kept], clean.labels.train[kept])
    assert torch.allclose(data.train[where["inverted"]], -clean.train[where["inverted"]], atol=1e-6)
    x, y = data.train[where["noise"]], clean.train[where["noise"]]
    inside = y.abs() < 0.1  # where almost nothing is clipped
    assert 0.4 < (x - y)[inside].std() < 0.6 and abs((x - y)[inside].mean()) < 0.1 and x.abs().max() <= 1
    assert (data.labels.train[where["another style"]] == -1).all()
    foreign = data.train[where["another style"]]
    assert ((clean.train.reshape(-1, 3, 16, 2, 16, 2).std((3, 5)) == 0).all() and (foreign.reshape(-1, 3, 16, 2, 16, 2).std((3, 5)) > 0).flatten(1).any(1).all()
            and len(foreign.flatten(1).unique(dim=0)) == 2)  # only Pixel Art is made of squares
    for i in where["duplicate"]:
        twin = [j for j in where["none"] if torch.equal(data.train[i], data.train[j])]
        assert len(twin) == 1 and torch.equal(data.labels.train[i], data.labels.train[twin[0]])
    again = faces(40, plant={"noise": 0.1, "inverted": 0.15, "another style": 0.05, "duplicate": 0.2})
    assert torch.equal(data.train, again.train) and (data.planted == again.planted).all()


@pytest.mark.parametrize("options, sentence", [
    ({"style": "oil"}, "faces are drawn in the styles pixel-art and open-peeps, but 'oil' was asked for"),
    ({"size": 8}, "the number of pixels of a side is a whole number, 16 or more, but got 8"),
    ({"train": -1}, "the number of train instances is a whole number"),
    ({"shares": {"moustache": 0.5}}, "faces have accessories, .*skin colour, but shares speak of moustache"),
    ({"shares": {"mouth": {"angry": 0.5}}}, "shares of 'mouth' .* the values are none, happy01"),
    ({"shares": {"mouth": {"sad": 0}, "hat": 1.5}}, "shares of 'hat' are 0 or more"),
    ({"shares": {"mouth": {"sad": 0.7, "happy": 0.7}}}, "shares of 'mouth' .* add up to 1 .*-0.4 for the rest"),
    ({"shares": {"mouth": {"sad": 0.2, "happy": 0.7}}}, "shares of 'mouth' .* add up to 1 .*0.1 for the rest"),
    ({"shares": {"mouth": {"sad": 0.2, "sad01": 0.1}}}, "shares of 'mouth' are 0 or more, for different values"),
    ({"shares": {"skin colour": 0.5}}, "shares of 'skin colour' .* the values are #ffdbac"),
    ({"plant": {"blur": 0.1}}, r"plant gives shares to noise, .*got \{'blur': 0.1\} for 12 faces"),
    ({"plant": {"noise": -0.01}}, "plant gives shares to"),
    ({"plant": {"noise": 0.5, "duplicate": 0.5}}, "leaves some training faces alone")])
def test_a_share_that_means_nothing_is_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        faces(**options)


def test_faces_need_no_network(monkeypatch):
    def offline(*_, **__):
        raise OSError("no route to host")

    skipped_unless_here()
    monkeypatch.setattr("socket.socket.connect", offline)
    monkeypatch.setattr("socket.getaddrinfo", offline)
    gi.data._artist.cache_clear()
    assert len(faces(1, plant=None).train) == 1 and len(faces(0, 2).valid) == 2


@pytest.mark.parametrize("package", ["dicebear", "dicebear_styles", "resvg_py", "PIL"])
def test_what_draws_faces_is_named_where_it_is_absent(package, monkeypatch):
    gi.data._artist.cache_clear()
    skipped_unless_here(*[optional(name) for name in ("dicebear", "dicebear_styles", "resvg_py", "PIL") if name != package])
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"takes {package}, which is not installed: pip install 'gan-influence\[faces\]'"):
        gi.data.faces(1)


def test_a_folder_of_pictures(tmp_path):
    (tmp_path / "b").mkdir()
    wide = np.zeros((8, 16, 3), np.uint8)
    wide[:, 4:12] = 255, 0, 51
    pil.fromarray(wide).save(tmp_path / "b" / "wide.PNG")
    pil.fromarray(np.zeros((9, 9, 4), np.uint8)).save(tmp_path / "a.png")  # nothing to be seen, so white
    pil.fromarray(np.full((9, 9), 255, np.uint8)).save(tmp_path / "c.jpg")
    (tmp_path / "b" / "notes.txt").write_text("no picture")
    data = gi.data.images(tmp_path, size=8)
    assert len(data) == 3 and [path.name for path in data.paths] == ["a.png", "wide.PNG", "c.jpg"]
    assert all(picture.shape == (3, 8, 8) and picture.dtype == torch.float32 for picture in data)
    assert (data[0] == 1).all() and (data[-1] == 1).all() and torch.allclose(data[1], torch.tensor([1, -1, -0.6])[:, None, None].expand(3, 8, 8))
    data.paths[2].unlink()  # nothing was read ahead
    with pytest.raises(ValueError, match=r"c\.jpg cannot be read as a picture .*: replace it, or take it out of the folder"):
        data[2]


def test_a_folder_without_pictures_and_a_broken_one(tmp_path, monkeypatch):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(FileNotFoundError, match=rf"neither {folder} nor its subfolders hold pictures \(.*png.*\): pass the folder that they are in"):
            gi.data.images(folder)
    pil.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:-2_000])
    with pytest.raises(ValueError, match=r"cut\.png cannot be read as a picture"):
        gi.data.images(tmp_path)[0]
    with pytest.raises(ValueError, match="the number of pixels of a side is a whole number, 1 or more, but got 0"):
        gi.data.images(tmp_path, size=0)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match="takes Pillow, which is not installed: pip install pillow"):
        gi.data.images(tmp_path)[0]
