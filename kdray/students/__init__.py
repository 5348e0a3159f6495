"""What is trained for a use: students of several families, built from the teacher or from a checkpoint.

In reading order:

- `student`           Student: what every family has
- `kinds`             the one list of families
- `transformer`       TransformerStudent: a copy of a Transformer with fewer or narrower layers
- `layers`            how the layers of a family of transformers are counted and copied
- `widths`            Widths: how many heads, feed-forward units and hidden units a Transformer has
- `axes`              the axes of a model's weights that follow its widths, found for any family of transformers
- `importance`        how much each unit of a model matters, and a copy with the most important units first
- `narrowing`         a model cut to smaller widths
- `word_student`      WordStudent: students that may read whole words, and have embeddings of a file
- `encoders`          EncoderStudent: what the recurrent, convolutional and static families have in common
- `embedding_tables`  the embeddings of a source, projected on their principal components
- `recurrent`         RecurrentStudent: a bidirectional LSTM or GRU
- `convolutional`     ConvolutionalStudent: filters over neighbouring words
- `static`            StaticStudent: the mean of embeddings
- `vocabularies`      Vocabulary: which pieces a student reads, if not those of its source
- `cut_vocabulary`    the most used pieces of a source: a smaller embedding table and a smaller tokenizer
- `word_vocabulary`   a vocabulary of whole words, with embeddings from a file or of the pieces of the source
- `recording`         Recorder: the states of a model's layers in its last forward pass
- `recordable`        which states of a model can be recorded, and of which width
- `sources`           the models that students are built from, and the rows in the ids of each
"""
