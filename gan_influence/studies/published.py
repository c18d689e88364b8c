"""What was published: Terashita et al., ICLR 2021, figures 1 and 2 and their tables."""

#: Published means over 10 seeds, read off figure 1 by eye (±.02), by metric.
PUBLISHED_ACCURACY = {
    "average log-likelihood": {"k": (1, 5, 10, 20, 50), "kendall_tau": (.87, .83, .86, .84, .67), "jaccard": (.57, .46, .53, .43, .30)},
    "Fréchet distance": {"k": (1, 5, 10, 20, 50), "kendall_tau": (.95, .87, .73, .44, .23), "jaccard": (.82, .70, .50, .27, .18)},
    "log Inception score": {"k": (1, 5, 10, 20, 50), "kendall_tau": (.91, .80, .67, .35, .07), "jaccard": (.78, .63, .43, .24, .16)},
}

_REMOVED_2D = (500, 1_000, 2_500, 5_000, 7_500, 10_000, 12_500, 15_000, 17_500, 20_000)
_REMOVED_MNIST = (500, 1_000, 2_500, 5_000, 10_000, 15_000, 20_000, 25_000, 35_000, 45_000)

#: Published mean changes on test data over 15 seeds, by metric and method, at `n_removed`; standard deviations where they are known.
PUBLISHED_REMOVAL = {
    "average log-likelihood": {"n_removed": _REMOVED_2D,
        "influence on average log-likelihood": (.0008, .0015, .0030, .0040, .0034, .0013, -.0021, -.0067, -.0123, -.0185),
        "std": (.0006, .0011, .0026, .0049, .0074, .010, None, None, None, None),
        "discriminator loss": (.0002, .0004, .0009, .0017, .0024, .0029, .0031, .0031, .0027, .0020)},
    "Fréchet distance": {"n_removed": _REMOVED_MNIST,
        "influence on Fréchet distance": (-.10, -.13, -.18, -.19, -.25, -.36, -.38, -.38, -.23, .23),
        "std": (.13, .18, .28, .46, .45, .35, .36, .37, .46, .60),
        "influence on Inception score": (-.07, -.10, -.14, -.14, -.26, -.32, -.34, -.36, -.22, .17),
        "discriminator loss": (-.03, -.04, -.07, -.13, -.18, -.20, -.19, -.15, -.06, .34),
        "isolation forest": (.01, .02, .05, .10, .24, .42, .73, 1.09, 2.56, 6.99)},
    "Inception score": {"n_removed": _REMOVED_MNIST,
        "influence on Fréchet distance": (.03, .04, .04, .03, .04, .09, .10, .10, .04, -.18),
        "influence on Inception score": (.04, .04, .05, .04, .08, .11, .12, .14, .09, -.07)},
}
