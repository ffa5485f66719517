/* llama.cpp as a judge: the logits of every position of one sequence.
 *
 *   llamacpp_logits MODEL TOKENS OUT UBATCH CACHE FLASH THREADS REPACK
 *
 * TOKENS  raw int32 token ids · OUT  raw float32[T, V] · CACHE  f32 or f16 · FLASH, REPACK  0 or 1
 * One decode call of all tokens (llama.cpp splits it into UBATCH rows). Built by tools/build_llamacpp.py. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llama.h"

static void quiet(enum ggml_log_level level, const char *text, void *data) {
    (void)data;
    if (level == GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

static void *die(const char *what) {
    fprintf(stderr, "llamacpp_logits: %s\n", what);
    exit(1);
}

static llama_token *read_tokens(const char *path, int32_t *n) {
    FILE *file = fopen(path, "rb");
    if (!file) die("cannot open the token file");
    fseek(file, 0, SEEK_END);
    *n = (int32_t)(ftell(file) / (long)sizeof(llama_token));
    rewind(file);
    llama_token *tokens = malloc((size_t)*n * sizeof *tokens);
    if (!tokens || *n < 1 || fread(tokens, sizeof *tokens, (size_t)*n, file) != (size_t)*n) die("cannot read the tokens");
    fclose(file);
    return tokens;
}

int main(int argc, char **argv) {
    if (argc != 9) die("usage: MODEL TOKENS OUT UBATCH CACHE FLASH THREADS REPACK");
    llama_log_set(quiet, NULL);
    llama_backend_init();

    int32_t n;
    llama_token *tokens = read_tokens(argv[2], &n);

    struct llama_model_params model_params = llama_model_default_params();
    model_params.n_gpu_layers = 0;
    model_params.use_extra_bufts = atoi(argv[8]) != 0;
    struct llama_model *model = llama_model_load_from_file(argv[1], model_params);
    if (!model) die("cannot load the model");

    struct llama_context_params params = llama_context_default_params();
    params.n_ctx = (uint32_t)n + 8;
    params.n_batch = (uint32_t)n;
    params.n_ubatch = (uint32_t)atoi(argv[4]);
    params.n_threads = params.n_threads_batch = atoi(argv[7]);
    params.type_k = params.type_v = strcmp(argv[5], "f32") == 0 ? GGML_TYPE_F32 : GGML_TYPE_F16;
    params.flash_attn_type = atoi(argv[6]) ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    struct llama_context *context = llama_init_from_model(model, params);
    if (!context) die("cannot make a context");

    struct llama_batch batch = llama_batch_init(n, 0, 1);
    batch.n_tokens = n;
    for (int32_t i = 0; i < n; i++) {
        batch.token[i] = tokens[i];
        batch.pos[i] = i;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i] = 1;
    }
    if (llama_decode(context, batch)) die("decode failed");

    FILE *out = fopen(argv[3], "wb");
    if (!out) die("cannot write the logits");
    size_t n_vocab = (size_t)llama_vocab_n_tokens(llama_model_get_vocab(model));
    for (int32_t i = 0; i < n; i++)
        if (fwrite(llama_get_logits_ith(context, i), sizeof(float), n_vocab, out) != n_vocab) die("short write");
    if (fclose(out)) die("short write");

    llama_batch_free(batch);
    llama_free(context);
    llama_model_free(model);
    free(tokens);
    return 0;
}
