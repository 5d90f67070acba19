"""Where the networks and methods were published, as `kpipe list` cites them."""

# --- networks -------------------------------------------------------------------------------------------------------

LENET = (
    'Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-Based Learning Applied to Document Recognition", '
    "Proceedings of the IEEE 86(11), 1998"
)
ALEXNET = (
    'A. Krizhevsky, I. Sutskever, G. Hinton, "ImageNet Classification with Deep Convolutional Neural Networks", '
    "NIPS 2012"
)
ZFNET = 'M. Zeiler, R. Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014'
GOOGLENET = 'C. Szegedy et al., "Going Deeper with Convolutions", CVPR 2015'
VGG = 'K. Simonyan, A. Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015'
ALPHAGO = 'D. Silver et al., "Mastering the game of Go with deep neural networks and tree search", Nature 529, 2016'
KEYWORDS = (
    'T. Sainath, C. Parada, "Convolutional Neural Networks for Small-footprint Keyword Spotting", Interspeech 2015'
)
CHARACTERS = 'X. Zhang, J. Zhao, Y. LeCun, "Character-level Convolutional Networks for Text Classification", NIPS 2015'

# --- augmentations and normalizations -------------------------------------------------------------------------------

CUTOUT = (
    'T. DeVries, G. Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", '
    "arXiv 1708.04552, 2017"
)
RAND_AUGMENT = (
    'E. Cubuk, B. Zoph, J. Shlens, Q. Le, "RandAugment: Practical Automated Data Augmentation with a Reduced Search '
    'Space", NeurIPS 2020'
)
MIXUP = 'H. Zhang, M. Cisse, Y. Dauphin, D. Lopez-Paz, "mixup: Beyond Empirical Risk Minimization", ICLR 2018'
CUTMIX = (
    'S. Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features", ICCV 2019'
)
ZCA = 'A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", appendix A, 2009'

# --- training -------------------------------------------------------------------------------------------------------

MOMENTUM = (
    'I. Sutskever, J. Martens, G. Dahl, G. Hinton, "On the importance of initialization and momentum in deep '
    'learning", ICML 2013'
)
ADAGRAD = (
    'J. Duchi, E. Hazan, Y. Singer, "Adaptive Subgradient Methods for Online Learning and Stochastic Optimization", '
    "JMLR 12, 2011"
)
RMSPROP = 'G. Hinton, N. Srivastava, K. Swersky, "Neural Networks for Machine Learning", lecture 6e, 2012'
ADADELTA = 'M. Zeiler, "ADADELTA: An Adaptive Learning Rate Method", arXiv 1212.5701, 2012'
ADAM = 'D. Kingma, J. Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015'
NADAM = 'T. Dozat, "Incorporating Nesterov Momentum into Adam", ICLR 2016 workshop'
ADAMW = 'I. Loshchilov, F. Hutter, "Decoupled Weight Decay Regularization", ICLR 2019'
LION = 'X. Chen et al., "Symbolic Discovery of Optimization Algorithms", NeurIPS 2023'
MUON = 'K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", kellerjordan.github.io, 2024'
COSINE = 'I. Loshchilov, F. Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017'
ONE_CYCLE = (
    'L. Smith, N. Topin, "Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates", '
    "arXiv 1708.07120, 2017"
)

# --- search ---------------------------------------------------------------------------------------------------------

RANDOM_SEARCH = 'J. Bergstra, Y. Bengio, "Random Search for Hyper-Parameter Optimization", JMLR 13, 2012'
HYPERBAND = (
    'L. Li, K. Jamieson, G. DeSalvo, A. Rostamizadeh, A. Talwalkar, "Hyperband: A Novel Bandit-Based Approach to '
    'Hyperparameter Optimization", JMLR 18, 2018'
)
BAYESIAN_SEARCH = (
    'J. Snoek, H. Larochelle, R. Adams, "Practical Bayesian Optimization of Machine Learning Algorithms", NIPS 2012'
)
