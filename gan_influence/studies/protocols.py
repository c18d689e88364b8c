"""The published protocols as plain values, known without torch; `experiments` gives them the methods `prepare` and `measure`."""

from dataclasses import dataclass

AGREEMENT = "agreement"  #: the piece of a removal experiment that checks the influences it ranks by


@dataclass(frozen=True)
class Protocol:
    """What both experiments share: which GAN is trained on what, and how much data measures it."""

    data: str = "normal_2d"  #: or "mnist", or "digits"
    n: int = 10_000  #: training instances
    epochs: int = 50
    batch_size: int = 100
    learning_rate: float = 1e-3
    order: str = "simultaneous"
    activation: str = "relu"  #: of the networks on 2D-normal
    width: int = 32  #: of the networks on images
    held_out: int = 1_000  #: validation instances, and as many test instances
    latents: int = 1_000  #: generated instances that the metrics see

    @property
    def pieces(self) -> list[str]:
        """What `record` runs one at a time, in order of value."""
        return [piece for pieces in self.rounds for piece in pieces]


@dataclass(frozen=True)
class Accuracy(Protocol):
    """Experiment 1: does the influence rank instances as leave-one-out retraining does? By default Terashita et al., ICLR 2021, section 5.1, on 2D-normal."""

    instances: int = 200  #: how many are left out, one at a time
    windows: tuple[int, ...] = (1, 5, 10, 20, 50)  #: k, in epochs

    @property
    def rounds(self) -> list[list[str]]:
        """The pieces that all seeds need before the next ones: the windows; and, of a sample and for networks with kinks, smaller removals."""
        return [[f"k={k}"] for k in self.windows] + ([["fractions"]] if self.data == "normal_2d" and self.instances < self.n else [])


@dataclass(frozen=True)
class Removal(Protocol):
    """Experiment 2: is the GAN better when the last epoch is run again without the most harmful instances? By default section 5.2, on 2D-normal."""

    n: int = 50_000
    epochs: int = 70
    held_out: int = 10_000
    latents: int = 10_000
    fractions: tuple[float, ...] = (.01, .02, .05, .1, .15, .2, .25, .3, .35, .4)  #: of the training set, removed
    last_epochs: int = 1  #: run again without them

    @property
    def methods(self) -> list[str]:
        """The rankings that are compared."""
        names = ["average log-likelihood"] if self.data == "normal_2d" else ["Fréchet distance", "Inception score"]
        return [f"influence on {name}" for name in names] + ["random", "isolation forest", "discriminator loss"]

    @property
    def rounds(self) -> list[list[str]]:
        """The pieces that all seeds need before the next ones: a ranking and chance, which it must beat; the others; a check of the influences."""
        first = [self.methods[0], "random"]
        return [first, [method for method in self.methods if method not in first], [AGREEMENT]]


@dataclass(frozen=True)
class InRounds(Removal):
    """Cleansing in rounds against the one round of Experiment 2, both picked on validation data, and judged by metrics that neither saw."""

    windows: tuple[int, ...] = (1, 5)  #: k, in epochs
    bandwidths: tuple[float, ...] = (1.0, 0.25)  #: of the average log-likelihood that is pulled back, on 2D-normal
    most: int = 12  #: rounds
    step: float = 0.05  #: of the training set, changed by the first round

    @property
    def rounds(self) -> list[list[str]]:
        """The pieces that all seeds need before the next ones: the windows, by the published metric and then by the sharper one."""
        return [[f"k={k}" + (f" bandwidth {width:g}" if width != 1 else "")]
                for width in (self.bandwidths if self.data == "normal_2d" else (1,)) for k in self.windows]


@dataclass(frozen=True)
class Minority(Protocol):
    """Whom does cleansing remove, by which metric? On the plane, 90 % and 10 % in two clusters with noise between them; or on faces."""

    data: str = "mixture"  #: or "faces"
    n: int = 2_000
    epochs: int = 300
    learning_rate: float = 0.05
    activation: str = "tanh"
    minority: float = 0.1  #: its share
    noise: float = 0.05  #: share of the training instances that are uniform noise instead, on the plane
    bandwidth: float = 0.3  #: of the average log-likelihood
    windows: tuple[int, ...] = (1, 5)  #: k, in epochs
    fractions: tuple[float, ...] = (.05, .2)  #: removed
    instances: int = 60  #: left out, one at a time, to see whether the influences can be trusted
    weight: float = 5.0  #: of a share beside a quality in the sum of both

    @property
    def rounds(self) -> list[list[str]]:
        """One piece a window."""
        return [[f"k={k}"] for k in self.windows]


@dataclass(frozen=True)
class Pretraining(Protocol):
    """The style-based network that adapters sit on, pretrained by an ordinary loop.

    Without `seeking`, which rewards different latents for different faces, the spread of the faces fell to some four tenths of the data's or less
    within 1 500 steps, and went on falling, at the learning rates and gammas that were tried.
    """

    data: str = "faces"
    style: str = "pixel-art"
    n: int = 4_000
    epochs: int = 36
    batch_size: int = 16
    learning_rate: float = 3e-4  #: of Adam, for the first half; then it falls to nothing in a straight line
    order: str = "alternating"
    width: int = 16  #: of the generator
    discriminator_width: int = 8  #: of the discriminator
    gamma: float = 5.0  #: of R1
    seeking: float = 1.0  #: what the generator pays for two latents' distance over that of their images
    average: float = 0.999  #: the generator's moving average keeps this share of itself
    held_out: int = 500
    latents: int = 500

    @property
    def rounds(self) -> list[list[str]]:
        """One piece."""
        return [["weights"]]


@dataclass(frozen=True)
class Consumption(Protocol):
    """Self-consumption on the plane: each generation of a small GAN goes on training on what the one before it made."""

    data: str = "mixture"
    n: int = 500  #: instances a generation
    first_epochs: int = 600  #: of generation 0, on real data
    epochs: int = 80  #: of every other
    learning_rate: float = 0.05
    activation: str = "tanh"
    generations: int = 5
    minority: float = 0.2  #: its share
    valid: int = 200  #: real instances, the same in every generation
    held_out: int = 2_000
    latents: int = 2_000
    bandwidth: float = 0.3  #: of the average log-likelihood
    drop: float = 0.2  #: share of the instances that is left out
    last_epochs: int = 40  #: run again without them
    penalty: float = 0.1  #: λ of the PLE
    variants: tuple[str, ...] = ("none", "random drop", "cleansed", "trained on validation", "fresh", "PLE", "hypernetwork")

    @property
    def rounds(self) -> list[list[str]]:
        """One piece a variant."""
        return [[name] for name in self.variants]


@dataclass(frozen=True)
class Adaptation(Protocol):
    """Low-rank adapters learn another style from a few hundred faces, some of them planted; cleansing by influence on the averaged generator's distance.

    Against Terashita et al., TNNLS 2025: 32 × 32 instead of 256 × 256 pixels; 8 epochs instead of 50, as this small generator loses its variety
    after about twice as many; a tenth of the learning rate, as nothing equalises it here; a moving average of .98 instead of .999, whose thousand
    steps this run does not have; half of R1's gamma, as in pretraining; noise but no style mixing; a small classifier's features; R1 in the influences.
    """

    data: str = "faces"
    style: str = "open-peeps"
    n: int = 240
    epochs: int = 8
    batch_size: int = 8
    learning_rate: float = 2e-4
    order: str = "alternating"
    rank: int = 32
    gamma: float = 5.0  #: of R1
    average: float = 0.98  #: the generator's moving average keeps this share of itself
    planted: float = 0.05  #: share of the training faces, of each kind
    kinds: tuple[str, ...] = ("another style", "noise", "inverted")
    held_out: int = 250
    latents: int = 250
    last_epochs: int = 1
    fractions: tuple[float, ...] = (.005, .01, .02, .05, .1, .2, .5, .7, .9)  #: removed; published from .001, which is no face here
    full: tuple[float, ...] = (.02, .1, .5)  #: of those, what is retrained from the start as well
    methods: tuple[str, ...] = ("exact", "isolation forest", "random")  #: whose most harmful faces are removed
    estimators: tuple[str, ...] = ("exact", "moments constant", "released 2025", "released 2025, damped")
    probes: int = 24  #: left out alone, to see which estimator to trust

    @property
    def rounds(self) -> list[list[str]]:
        """The pieces that all seeds need before the next ones."""
        return [["one epoch"], [AGREEMENT], ["full"]]


@dataclass(frozen=True)
class Autophagy(Protocol):
    """Hypernetworks with and without the autophagy penalty, small: generations of two normals, or two digits of unequal numbers."""

    data: str = "normals"  #: or "digits"
    n: int = 2_000  #: instances a generation, or of the majority
    generations: int = 8
    batch_size: int = 256
    steps: int = 150  #: of Adam, a generation
    learning_rate: float = 3e-2
    ratios: tuple[int, ...] = ()  #: majority over minority, of digits
    methods: tuple[str, ...] = ("MLE", "hypernetwork", "PLE 0.1", "PLE 10")  #: the number is λ

    @property
    def rounds(self) -> list[list[str]]:
        """One piece a method."""
        return [[name] for name in self.methods]


@dataclass(frozen=True)
class Decentralised(Protocol):
    """Influence by gossip among clients of unlike data: at the LQGAN's optimum against its closed form, and along the training of a small GAN."""

    data: str = "clients"
    n: int = 200
    clients: int = 8
    learning_rate: float = 0.05
    batch_size: int = 10
    activation: str = "tanh"
    graphs: tuple[str, ...] = ("full", "ring", "broadcaster", "exponential", "random_directed", "random_pair")
    push_sums: tuple[int, ...] = (1, 2, 5, 10, 20, 50)  #: rounds before each pull-back, at rest
    terms: int = 3_000  #: of the series at rest
    steps: int = 200  #: of training along the way
    rates: tuple[float, ...] = (.1, .03)  #: of it
    traced: int = 50  #: rounds before each pull-back, along the way

    @property
    def rounds(self) -> list[list[str]]:
        """The series at rest; then a learning rate each."""
        return [["at rest"], *([f"learning rate {rate:g}"] for rate in self.rates)]


ACCURACY = {
    "paper": Accuracy(),
    "quick": Accuracy(n=1_000, epochs=10, held_out=300, latents=300, instances=60, windows=(1, 2, 5, 10)),
    "every": Accuracy(instances=10_000, windows=(1,)),
    "mnist paper": Accuracy("mnist", width=8, held_out=10_000, latents=2_000),
    "mnist small": Accuracy("mnist", width=8, held_out=10_000, latents=2_000, instances=50, windows=(1, 5, 10)),  # a quarter of the instances
    "mnist quick": Accuracy("mnist", n=1_000, epochs=20, batch_size=50, learning_rate=5e-3, width=8, held_out=1_000, latents=500, instances=20, windows=(1, 2)),
    "digits quick": Accuracy("digits", n=1_000, epochs=20, batch_size=50, learning_rate=2e-3, width=8, held_out=300, latents=500, instances=20, windows=(1, 2)),
}

REMOVAL = {
    "paper": Removal(),
    "quick": Removal(n=5_000, learning_rate=1e-2, held_out=2_000, latents=2_000),  # a tenth of the steps, each ten times as long
    "mnist paper": Removal("mnist", epochs=20, fractions=(.01, .02, .05, .1, .2, .3, .4, .5, .7, .9)),
    # A fifth of the instances and three tenths of the steps, each twice as long, through networks of a quarter of the width.
    "mnist small": Removal("mnist", n=10_000, epochs=30, learning_rate=2e-3, width=8, latents=2_000, fractions=(.01, .05, .1, .2, .3, .5, .7)),
    "mnist quick": Removal("mnist", n=600, epochs=20, batch_size=50, learning_rate=5e-3, width=8, held_out=1_000, latents=500, fractions=(.05, .2, .5)),
    "digits quick": Removal("digits", n=800, epochs=18, batch_size=50, learning_rate=2e-3, width=8, held_out=300, latents=500, fractions=(.05, .2, .5)),
}

ROUNDS = {
    "paper": InRounds(),
    "to the end": InRounds(windows=(1,), bandwidths=(1.0,), most=40),
    "quick": InRounds(n=5_000, learning_rate=1e-2, held_out=2_000, latents=2_000),
    "mnist small": InRounds("mnist", n=10_000, epochs=30, learning_rate=2e-3, width=8, latents=2_000, fractions=(.01, .05, .1, .2, .3, .5, .7), windows=(1,)),
}

MINORITY = {
    "2d": Minority(),
    "2d rough": Minority(activation="leaky relu", learning_rate=0.1, epochs=150, windows=(10,)),  # training that no estimate follows
    "faces": Minority("faces", n=600, epochs=60, batch_size=50, learning_rate=2e-4, order="alternating", activation="silu", width=6, held_out=600,
                      latents=600, windows=(3,), fractions=(.1,), instances=20),
}

AUTOPHAGY = {
    "normals": Autophagy(),
    "digits": Autophagy("digits", n=1_000, steps=300, batch_size=128, learning_rate=3e-3, ratios=(2, 5, 10),
                        methods=("VAE", "VAE reweighted", "hypernetwork", "PLE 1", "hypernetwork mixed")),
}

#: What notebooks/recorded holds, in order of value: the protocol, and the seeds that complete it.
EXPERIMENTS = {
    "accuracy_2d": (ACCURACY["paper"], range(10)),
    "removal_2d": (REMOVAL["paper"], range(15)),
    "rounds_2d": (ROUNDS["paper"], range(15)),
    "accuracy_2d_every": (ACCURACY["every"], range(3)),
    "removal_mnist_small": (REMOVAL["mnist small"], range(10)),
    "rounds_2d_to_the_end": (ROUNDS["to the end"], range(15)),
    "rounds_mnist_small": (ROUNDS["mnist small"], range(8)),
    "accuracy_mnist_small": (ACCURACY["mnist small"], range(2)),
    "minority_2d": (MINORITY["2d"], range(6)),
    "minority_2d_rough": (MINORITY["2d rough"], range(3)),
    "minority_faces": (MINORITY["faces"], range(5)),
    "autophagy_normals": (AUTOPHAGY["normals"], range(5)),
    "autophagy_digits": (AUTOPHAGY["digits"], range(5)),
    "consumption_2d": (Consumption(), range(5)),
    "gossip": (Decentralised(), range(3)),
    "stylegan_faces": (Pretraining(), range(1)),
    "adapters_faces": (Adaptation(), range(6)),
    "accuracy_mnist": (ACCURACY["mnist paper"], range(10)),
    "removal_mnist": (REMOVAL["mnist paper"], range(15)),
}

FOR_A_GPU = "accuracy_mnist", "removal_mnist"  #: minutes a seed there, hours on a CPU; the small ones are what a CPU can do
