"""What the miniature world holds: scenes and their pictures, words about them, and both as files.

scenes, textures                     what is to be seen, and the picture
questions, prompts, language         what is asked and said about it
documents, tokenizer                 the text that a language model reads
datasets, benchmarks                 all of it as shards and as official files
"""
