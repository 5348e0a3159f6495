"""What is trained: pretrained checkpoints, fresh models, and students that are built from them.

In reading order:

- `pretrained`        a model and its tokenizer as a folder: found, checked (safetensors only), copied into the cache
- `checks`            everything that is checked of a model folder, in order
- `folders`           the files of a model folder: which are read, where links may lead, their fingerprint
- `json_files`        JSON that a stranger wrote, with limits
- `config_files`      config.json and the tokenizer's configuration: no code, no absurd numbers
- `weight_files`      the weights: safetensors only, checked by their headers
- `encoder_model`     what the small models of kdray have in common: embeddings, an encoder, a head
- `recurrent_model`   recurrent models: LSTM and GRU in both directions
- `recurrent_onnx`    a recurrent layer as one operator of ONNX, for the export
- `convolutional_model`  convolutional models: filters of several widths, residual dilated blocks
- `static_model`      static models: the weighted mean of embeddings
- `own_models`        the model types that are part of kdray, registered with transformers
- `families`          which families of transformers are accepted, and which answers depend on padding
- `lineage`           Lineage: names, fingerprints and figures of what the students of a sweep are made from
- `fresh`             FreshTransformer: a small Transformer with random weights, and a tokenizer made from the texts
- `layers`            how the layers of a family are counted and copied
- `vocabularies`      Vocabulary: which pieces a student reads, if not those of its source
- `cut_vocabulary`    the most used pieces of a source: a smaller embedding table and a smaller tokenizer
- `student`           Student: what every family of students has
- `widths`            Widths: how many heads, feed-forward units and hidden units a Transformer has
- `axes`              the axes of a model's weights that follow its widths, found for any family
- `importance`        how much each unit of a model matters, and a copy with the most important units first
- `narrowing`         a model cut to smaller widths
- `transformer`       TransformerStudent: a copy of a Transformer with fewer or narrower layers
- `embedding_tables`  the embeddings of a source, projected on their principal components
- `word_vocabulary`   a vocabulary of whole words, with embeddings from a file or of the pieces of the source
- `word_student`      WordStudent: students that may read whole words, and have embeddings of a file
- `encoders`          EncoderStudent: what the families of small models have in common
- `recurrent`         RecurrentStudent: a bidirectional LSTM or GRU
- `convolutional`     ConvolutionalStudent: filters over neighbouring words
- `static`            StaticStudent: the mean of embeddings
- `students`          the one list of families of students
- `student_sources`   the models that students are built from: the teacher, or smaller checkpoints
"""
