// The kept tokens: rows of features that the selection names.
//
// No includes, for NVRTC.

// source [frames, patches, row_bytes], indices [frames, count] int64 → out [frames, count, row_bytes].
// Grid: count × frames. Any block; one copies a row, sixteen bytes a thread where rows and addresses allow it.
extern "C" __global__ void gather_rows(const char* source, const long long* indices, int patches, int count,
                                       int row_bytes, char* out) {
    const long long frame = blockIdx.y, slot = frame * count + blockIdx.x;
    const char* from = source + (frame * patches + indices[slot]) * row_bytes;
    char* to = out + slot * row_bytes;
    const unsigned long long addresses = (unsigned long long)source | (unsigned long long)out;
    if (row_bytes % 16 == 0 && addresses % 16 == 0) {
        for (int i = threadIdx.x; i < row_bytes / 16; i += blockDim.x)
            reinterpret_cast<int4*>(to)[i] = reinterpret_cast<const int4*>(from)[i];
    } else {
        for (int i = threadIdx.x; i < row_bytes; i += blockDim.x) to[i] = from[i];
    }
}
