-- Verifies RS256 and ES256 tokens with the OpenSSL that nginx is linked with. Called once a request,
-- before limit_req; leaves its answers in $user_id, $user_roles and $tenant.
local ffi = require "ffi"
local cjson = require "cjson"
local decode = require("ngx.base64").decode_base64url

ffi.cdef [[
typedef struct bio_st BIO; typedef struct evp_pkey_st EVP_PKEY; typedef struct evp_md_ctx_st EVP_MD_CTX;
typedef struct evp_md_st EVP_MD;
BIO *BIO_new_mem_buf(const void *buf, int len);
int BIO_free(BIO *a);
EVP_PKEY *PEM_read_bio_PUBKEY(BIO *bp, EVP_PKEY **x, void *cb, void *u);
EVP_MD_CTX *EVP_MD_CTX_new(void);
int EVP_MD_CTX_reset(EVP_MD_CTX *ctx);
const EVP_MD *EVP_sha256(void);
int EVP_DigestVerifyInit(EVP_MD_CTX *ctx, void **pctx, const EVP_MD *type, void *e, EVP_PKEY *pkey);
void ERR_clear_error(void);
int EVP_DigestVerify(EVP_MD_CTX *ctx, const unsigned char *sig, size_t siglen, const unsigned char *tbs, size_t tbslen);
]]
local C = ffi.C
local digest, context = C.EVP_sha256(), C.EVP_MD_CTX_new()

local function key(file)
    local handle = assert(io.open(file))
    local text = handle:read("*a")
    handle:close()
    local bio = C.BIO_new_mem_buf(text, #text)
    local read = C.PEM_read_bio_PUBKEY(bio, nil, nil, nil)
    C.BIO_free(bio)
    assert(read ~= nil, file)
    return read
end

-- ECDSA signatures of tokens are two numbers; OpenSSL wants them as DER.
local function integer(bytes)
    bytes = bytes:gsub("^%z+", "")
    if bytes == "" or bytes:byte(1) > 127 then bytes = "\0" .. bytes end
    return "\2" .. string.char(#bytes) .. bytes
end

local function der(signature)
    if #signature ~= 64 then return nil end
    local both = integer(signature:sub(1, 32)) .. integer(signature:sub(33))
    return "\48" .. string.char(#both) .. both
end

local M = {}

function M.load(folder)
    M.keys = {
        RS256 = { key = key(folder .. "/rsa.pub.pem"), kid = "rsa" },
        ES256 = { key = key(folder .. "/ec.pub.pem"), kid = "ec" },
    }
end

local function contains(list, wanted)
    if type(list) == "string" then return list == wanted end
    if type(list) ~= "table" then return false end
    for _, item in ipairs(list) do
        if item == wanted then return true end
    end
    return false
end

-- The claims of a good token, or nothing.
local function claims(token)
    local head, body, signature = token:match("^([%w_-]+)%.([%w_-]+)%.([%w_-]+)$")
    if not head then return end
    local ok, header = pcall(cjson.decode, decode(head) or "")
    if not ok or type(header) ~= "table" then return end
    local known = M.keys[header.alg]
    if not known or known.kid ~= header.kid then return end
    signature = decode(signature)
    if signature and header.alg == "ES256" then signature = der(signature) end
    if not signature then return end
    C.EVP_MD_CTX_reset(context)
    local signed = #head + 1 + #body
    if C.EVP_DigestVerifyInit(context, nil, digest, nil, known.key) ~= 1 or
        C.EVP_DigestVerify(context, signature, #signature, token, signed) ~= 1 then
        C.ERR_clear_error()
        return
    end
    local parsed, all = pcall(cjson.decode, decode(body) or "")
    if not parsed or type(all) ~= "table" then return end
    if all.iss ~= "https://issuer.example.test" or not contains(all.aud, "https://api.example.test") then
        return
    end
    if type(all.exp) ~= "number" or type(all.sub) ~= "string" then return end
    return all
end

local cache

-- With `entries`, verified tokens are kept, by their whole text.
function M.remember(entries)
    cache = require("resty.lrucache").new(entries)
end

function M.run(policy)
    local var = ngx.var
    local sent = var.http_authorization
    local token = sent and sent:match("^[Bb]earer +(%S+)$")
    if not token then return ngx.exit(401) end
    local all = cache and cache:get(token)
    if not all then
        all = claims(token)
        if not all then return ngx.exit(401) end
        if cache then cache:set(token, all) end
    end
    if all.exp < ngx.time() then return ngx.exit(401) end
    if policy then
        local allowed = var.request_method == "GET" and var.uri:sub(1, 8) == "/orders/"
            and contains(all.roles, "customer")
            and type(all.scope) == "string" and (" " .. all.scope .. " "):find(" orders:read ", 1, true)
        if not allowed then return ngx.exit(403) end
    end
    var.user_id = all.sub
    var.user_roles = type(all.roles) == "table" and table.concat(all.roles, ",") or ""
    var.tenant = all.tenant or ""
end

return M
