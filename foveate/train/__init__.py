"""Data, recipes, training and evaluation: no method's name in here.

`foveate.train.data.load_data`, `foveate.train.recipe.Recipe`, `foveate.train.fit.fit`, `foveate.train.base.train_base`,
`foveate.train.evaluate.evaluate`.
"""
